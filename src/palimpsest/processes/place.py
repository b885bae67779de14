"""What processes that work are told at their start, and what is asked of the place where they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from palimpsest import machine

Prepare = Callable[[int], object]
"""What a process does once, before its first piece, given its number from 1; this process is number 0."""


@dataclass(frozen=True, kw_only=True)
class How:
    """What every process is told at its start."""

    threads: int
    gpu: bool
    prepare: Prepare | None

    def begin(self, number: int) -> None:
        threads_for_good(self.threads)
        if self.prepare is not None:
            self.prepare(number)


class Place(Protocol):
    """Where processes run. An outcome is (number, kind, value); kinds: ready, done, raised, died."""

    def room(self) -> int: ...

    def start(self, number: int) -> None: ...

    def give(self, number: int, work: Callable[[Any], Any], item: Any) -> None: ...

    def outcomes(self, timeout: float | None) -> list[tuple[int, str, Any]]: ...

    def close(self) -> None: ...


def threads_for_good(threads: int) -> None:
    """Makes this process compute with so many threads. Cost: nothing, where torch is not loaded yet."""
    machine.prepare()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Inside, this process computes with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
