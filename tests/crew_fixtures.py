"""Work for other processes; it loads nothing that they would have to wait for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """A piece of work: which, and a folder in which its process dies at the first attempt."""

    number: int
    dies: str = ""


def whose(note: Note) -> int:
    """The process that does a piece, after it was killed once where it is to be."""
    mark = Path(note.dies, "died")
    if note.dies and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def deaf(note: Note) -> bool:
    """Whether Ctrl-C cannot reach the process."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def slow(note: Note) -> int:
    time.sleep(60)
    return note.number


def cannot(number: int) -> None:
    raise ValueError(f"number {number} has no room")


def odd(note: Note) -> object:
    """What cannot be sent."""
    return lambda: note


class Own(Exception):
    """An error that is not made again from its text."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def fails(note: Note) -> None:
    if note.number:
        raise Own("a", "b")
    raise KeyError("the key")
