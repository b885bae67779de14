"""Erase concepts and measure what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.receipt.make import PATCH_FILE, Receipt
from palimpsest.receipt.make import audit as measure
from palimpsest.run.looking import Look, judges, plan
from palimpsest.run.requests import request

DEFAULT_ERASER = "uce"  # of the systems that take seconds, the one that spares most; see docs/systems.md


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What `erase` returns."""

    patch: Patch
    receipt: Receipt
    patch_path: Path | None


def erase(
    host: Any,
    target: str | Sequence[str | Concept] | Request,
    *,
    method: ModelEdit | str = DEFAULT_ERASER,
    out: str | Path | None = None,
    seed: int = 0,
    look: Look | None = None,
    oracle: Any = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Erased:
    """Erases concepts from a text-to-image model and measures what changed.

    Args:
        host: from `load`; it is unchanged afterwards.
        target: names, concepts, or a whole request.
        method: a system, or its name.
        out: folder for patch.safetensors, receipt.json and receipt.html; None writes nothing.
        oracle: a model that never saw the target, to compare with.
        resume: go on from what an interrupted run left in `out`.

    Example:
        >>> host = load("tiny/sd")                                   # doctest: +SKIP
        >>> done = erase(host, "star", method="esd", out="no-star")  # doctest: +SKIP
        >>> print(done.receipt.summary())                            # doctest: +SKIP
    """
    asked = target if isinstance(target, Request) else request(host, target)
    system = catalog.load(catalog.find(method, "erase").id)() if isinstance(method, str) else method
    drawn = plan(host, asked, look)  # before the work, so that an impossible plan costs nothing
    work = Trace(folder=Path(out) if out is not None else None, resume=resume, progress=progress)
    patch = system(host, asked, seed=seed, trace=work)
    receipt = measure(
        host,
        patch,
        asked,
        plan=drawn,
        judges=judges(host, drawn, look),
        oracle=oracle,
        out=out,
        command=command,
        resume=resume,
        stop_early=look is not None and look.stop_early,
        trace=Trace(progress=progress),
    )
    return Erased(patch=patch, receipt=receipt, patch_path=None if out is None else Path(out) / PATCH_FILE)
