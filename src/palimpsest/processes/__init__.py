"""Independent pieces of work in processes that stay, or over Ray; a piece whose process dies is done again."""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.core.errors import PalimpsestError
from palimpsest.processes.here import Here
from palimpsest.processes.over_ray import OverRay
from palimpsest.processes.place import How, Place, Prepare, computing

ATTEMPTS = 3  # at one piece, whose process may be killed for want of memory by what runs beside it
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use, a container's share among them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return allowed


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int = 0, ray: str = ""
) -> Iterator[tuple[Item, Result]]:
    """Pairs (item, work(item)) as they are done, each computed by one thread.

    Small models leave a second thread nothing to do but to wait, so that as many processes as cores are fastest.

    Args:
        work: a function that can be imported; it and the items are sent to other processes.
        workers: processes at once, 0 for one a core. A single worker is this process.
        ray: "local" starts Ray on this machine, an address joins its cluster, "" takes processes.

    Raises:
        BadRequest: Ray is asked for and not installed, or its address does not answer.
        PalimpsestError: one piece's process died ATTEMPTS times. Other errors are those of `work`.
    """
    if not items:
        return
    if not ray and min(workers or cores(), len(items)) == 1:
        with computing(1):
            yield from ((item, work(item)) for item in items)
        return
    elsewhere = bool(ray) and ray != "local"
    at_once = workers if elsewhere else workers or cores()  # 0: all that a cluster has
    with Workers(min(at_once, len(items)) if at_once else 0, ray=ray) as crew:
        yield from crew.each(work, items)


class Workers:
    """Processes that stay until the block ends, so that what one piece of work loads serves the next.

    They are started by `start` or with the first pieces, take a piece each, and get the next when it is done. A process
    that dies costs the piece that it worked on, which is done again; Ctrl-C reaches this process alone.

    Args:
        count: processes beside this one. 0: none here; as many as it has room for where Ray joins a cluster.
        ray: as `spread` takes it.
        threads: that each computes with. gpu: whether each needs one.
        prepare: what each does once before it is given anything. One that cannot takes no part, with a warning.
    """

    def __init__(
        self, count: int, *, ray: str = "", threads: int = 1, gpu: bool = False, prepare: Prepare | None = None
    ) -> None:
        self.count, self.ray, self.threads, self.gpu, self.prepare = count, ray, threads, gpu, prepare
        self._place: Place | None = None
        self._idle: list[int] = []
        self._busy: dict[int, int] = {}  # number -> the piece that it works on
        self._lost: Counter[int] = Counter()  # number -> how often it died before it was given anything
        self._left: set[int] = set()  # who takes part, or will
        self._why = ""  # the last one takes no part

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts them without waiting for them, so that they are ready when there is work."""
        if self._place is not None or (self.count == 0 and self.ray in ("", "local")):
            return
        how = How(threads=self.threads, gpu=self.gpu, prepare=self.prepare)
        self._place = OverRay(self.ray, self.count, how) if self.ray else Here(how)
        if self.count == 0:
            self.count = self._place.room()
        self._left = set(range(1, self.count + 1))
        for number in sorted(self._left):
            self._place.start(number)

    def close(self) -> None:
        """Ends them, whatever they are at."""
        place, self._place = self._place, None
        self._idle, self._busy, self._left = [], {}, set()
        if place is not None:
            place.close()

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Pairs (item, work(item)) as they are done, by the others alone."""
        task = _Task(work=work, items=items, waiting=deque(range(len(items))))
        try:
            self.start()
            while task.waiting or self._busy:
                if not self._left:
                    raise PalimpsestError(f"No process is left to work: {self._why or 'none could be started'}.")
                yield from ((items[index], result) for index, result in self._turn(task, None))
        except BaseException:
            self.close()
            raise

    def share(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        keep: Callable[[Item, Result], object],
        here: Callable[[Item, Callable[[], None]], Result],
        *,
        alone: Callable[[Item], bool] = lambda item: False,
    ) -> None:
        """Has every piece done, by the others and by this process; nobody waits for one that is still starting.

        Args:
            keep: called in this process with each piece and its result as soon as it is there.
            here: how this process does a piece. It calls what it is given now and then, so that results of others are
                kept meanwhile and they get their next piece.
            alone: pieces that only this process can do.
        """
        mine = deque(index for index, item in enumerate(items) if alone(item))
        others = deque(index for index, item in enumerate(items) if not alone(item))
        task = _Task(work=work, items=items, waiting=others)

        def turn(timeout: float | None = 0) -> None:
            for index, result in self._turn(task, timeout):
                keep(items[index], result)

        try:
            if task.waiting:
                self.start()
            with computing(self.threads):
                while mine or task.waiting or self._busy:
                    turn()
                    queue = mine or task.waiting
                    if queue:
                        index = queue.popleft()
                        keep(items[index], here(items[index], turn))
                    elif self._busy:
                        turn(None)
        except BaseException:
            self.close()
            raise

    def _turn(self, task: _Task, timeout: float | None) -> list[tuple[int, Any]]:
        """Hands out what waits and takes what came meanwhile; gives (piece, result) of what is done."""
        if self._place is None:
            return []
        self._hand_out(task)
        done = []
        for number, kind, value in self._place.outcomes(timeout):
            index = self._busy.pop(number, None)
            if kind == "died":
                self._died(task, number, index)
            elif kind == "raised" and index is None:
                self._part(number, str(value))
            elif kind == "raised":
                raise value
            else:
                self._idle.append(number)
                done += [] if index is None else [(index, value)]
        self._hand_out(task)
        return done

    def _hand_out(self, task: _Task) -> None:
        assert self._place is not None
        while self._idle and task.waiting:
            number, index = self._idle.pop(), task.waiting.popleft()
            self._busy[number] = index
            self._place.give(number, task.work, task.items[index])

    def _died(self, task: _Task, number: int, index: int | None) -> None:
        assert self._place is not None
        if number not in self._left:  # it said why before it ended
            return
        if index is None:
            self._idle = [other for other in self._idle if other != number]
            self._lost[number] += 1
            if self._lost[number] == ATTEMPTS:
                self._part(number, f"it died {ATTEMPTS} times before it could work, most likely for want of memory")
                return
        else:
            task.attempts[index] += 1
            if task.attempts[index] == ATTEMPTS:
                raise PalimpsestError(
                    f"The process that worked on {task.items[index]} died {ATTEMPTS} times, most likely for want of "
                    "memory. Run fewer at once (--workers 1)."
                )
            task.waiting.appendleft(index)
        self._place.start(number)

    def _part(self, number: int, why: str) -> None:
        self._left.discard(number)
        self._why = why.rstrip(".")
        warnings.warn(f"Process {number} takes no part: {self._why}. The others do its share.", stacklevel=2)


@dataclass(kw_only=True)
class _Task:
    """Pieces of one call: those that wait, by their place, and how often the process of each died."""

    work: Callable[[Any], Any]
    items: Sequence[Any]
    waiting: deque[int]
    attempts: Counter[int] = field(default_factory=Counter)
