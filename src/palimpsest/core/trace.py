"""What a run cost and what it logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(kw_only=True)
class Trace:
    """The running account of one piece of work.

    Args:
        folder: where checkpoints go; None: the run cannot be resumed.
        resume: go on from the checkpoint in `folder`, if there is one.
        progress: told how far long work is.
        log: (step, name, value) of everything worth a curve.
        forwards: rows that went through each watched part, e.g. {"denoiser": 640, "text_encoder": 12}.
        calls: the same, counted in batched calls.
        seconds: wall time of all watched work so far.
        peak_bytes: the most memory above the start of the watched work; None where the system cannot tell.
    """

    folder: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    log: list[tuple[int, str, float]] = field(default_factory=list)
    forwards: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def reading(self, what: str, nbytes: int) -> Callable[[int], None]:
        """What is to be called with the bytes of each block that was read, of so many in all; told in megabytes."""
        done, total = 0, max(1, round(nbytes / 1e6))

        def read(more: int) -> None:
            nonlocal done
            done += more
            self.tell(what, min(total, round(done / 1e6)), total)

        return read

    @contextmanager
    def part(self, name: str) -> Iterator[Trace]:
        """The account of a part of the work, whose checkpoints lie in a folder of its own; its log joins this one's."""
        folder = None if self.folder is None else self.folder / name
        part = Trace(folder=folder, resume=self.resume, progress=self.progress)
        try:
            yield part
        finally:
            self.log += part.log

    @contextmanager
    def watching(self, host: object) -> Iterator[None]:
        """Counts seconds, memory and the forwards of the host's large parts; leaves no hook behind."""
        handles = [
            module.register_forward_hook(self._counter(role))
            for role in ("denoiser", "text_encoder", "autoencoder", "backbone")
            for module in host.parts(role).values()  # type: ignore[attr-defined]
        ]
        memory = _PeakMemory()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            peak = memory.peak()
            if peak is not None:
                self.peak_bytes = max(peak, self.peak_bytes or 0)
            for handle in handles:
                handle.remove()

    def _counter(self, role: str) -> Callable[[nn.Module, object, object], None]:
        def count(module: nn.Module, args: object, output: object) -> None:
            rows = _rows(output)
            self.forwards[role] = self.forwards.get(role, 0) + rows
            self.calls[role] = self.calls.get(role, 0) + 1

        return count


def _rows(output: object) -> int:
    while not isinstance(output, torch.Tensor):
        if isinstance(output, dict):
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)):
            output = output[0]
        else:  # diffusers' output dataclasses are dicts; anything else is counted as one
            return 1
    return output.shape[0] if output.ndim else 1


class _PeakMemory:
    """Peak memory above the level at construction: the accelerator's where there is one, else this process's."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        try:  # Linux: forget the high-water mark so far, so that the next one is ours
            Path("/proc/self/clear_refs").write_text("5")
            self.start: int | None = _status_bytes("VmRSS")
        except OSError:
            self.start = None  # no way to tell on this system

    def peak(self) -> int | None:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - (self.start or 0)
        if self.start is None:
            return None
        return max(0, _status_bytes("VmHWM") - self.start)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")
