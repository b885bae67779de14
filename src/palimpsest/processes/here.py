"""Processes on this machine."""

from __future__ import annotations

import copy
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.reduction import ForkingPickler
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.processes.place import How

CALMLY = 5.0  # seconds for a process to end by itself


class Here:
    """Processes on this machine, each at the other end of a pipe: a broken pipe is a dead process, either way."""

    def __init__(self, how: How) -> None:
        self._how, self._context = how, get_context("spawn")
        self._held: dict[int, tuple[Any, Any]] = {}  # number -> (pipe, process)

    def room(self) -> int:
        return 0

    def start(self, number: int) -> None:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._how, number), daemon=True)
        with _unheard():
            process.start()
        theirs.close()
        self._held[number] = mine, process

    def give(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        with suppress(OSError):  # it has died meanwhile, which the pipe's other direction tells
            self._held[number][0].send((work, item))

    def outcomes(self, timeout: float | None) -> list[tuple[int, str, Any]]:
        numbers: dict[Any, int] = {pipe: number for number, (pipe, _) in self._held.items()}
        ready: list[Any] = connection.wait(list(numbers), timeout) if numbers else []
        found = []
        for pipe in ready:
            number = numbers[pipe]
            outcome: Any = ("died", None)
            try:
                outcome = pipe.recv()
            except (EOFError, OSError):
                self._end(number)
            kind, value = outcome
            if kind == "raised":
                value, text = value
                value.__cause__ = _Elsewhere(text)
            found.append((number, kind, value))
        return found

    def close(self) -> None:
        for _, process in self._held.values():
            process.kill()
        for number in list(self._held):
            self._end(number)

    def _end(self, number: int) -> None:
        pipe, process = self._held.pop(number)
        pipe.close()
        process.join(CALMLY)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


class _Elsewhere(Exception):
    """The traceback of another process, as the cause of what was raised there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _serve(pipe: Any, how: How, number: int) -> None:
    """A process's life: prepare, then piece after piece, until the other end is closed."""
    try:
        kind, value = _outcome(how.begin, number)
        if kind == "raised":
            pipe.send((kind, value))
            return
        pipe.send(("ready", None))
        while True:
            outcome = _outcome(*pipe.recv())
            try:
                pipe.send(outcome)
            except OSError:
                raise
            except Exception:  # what cannot be sent is not a process that died
                pipe.send(("raised", (PalimpsestError("A result cannot be sent."), traceback.format_exc())))
    except (EOFError, OSError):
        pass


def _outcome(work: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    try:
        return "done", work(item)
    except Exception as e:
        text = traceback.format_exc()
        try:  # some exceptions cannot be sent, others not be made again
            ForkingPickler.dumps(e)
            copy.copy(e)
        except Exception:
            e = PalimpsestError(f"{type(e).__name__}: {e}")
        return "raised", (e, text)


@contextmanager
def _unheard() -> Iterator[None]:
    """What is started here hears nothing of Ctrl-C, which a terminal sends to every process that it knows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start would undo the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
