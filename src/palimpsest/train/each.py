"""Work that is done for one target of a request after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from palimpsest.core.concept import Request
from palimpsest.core.trace import Trace
from palimpsest.train.randomness import generator


def each_target(
    request: Request, trace: Trace, seed: int, what: str, *, steps: int
) -> Iterator[tuple[int, Request, torch.Generator, Trace]]:
    """Each target by itself: its number, the request for it alone, its draws and its trace.

    A target's draws depend on the seed and its name only, and its checkpoints lie in a folder of its own.

    Args:
        trace: of the whole work; it takes each target's log when the next one begins, and is told how far it is.
        what: names the draws.
        steps: of each target's training; the logs of several stand one behind the other.
    """
    for k, (target, toward) in enumerate(zip(request.target, request.replacements(), strict=True)):
        folder = None if trace.folder is None else trace.folder / f"concept-{k:03}"
        own = Trace(folder=folder, resume=trace.resume)
        alone = replace(request, target=(target,), toward=() if toward is None else (toward,))
        yield k, alone, generator(seed, what, target.name), own
        trace.log += [(k * steps + at, name, value) for at, name, value in own.log]
        trace.tell("erasing", k + 1, len(request.target))
