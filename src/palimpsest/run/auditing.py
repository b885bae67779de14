"""Measure what changed between two models, whoever edited them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Concept, Request
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.hosts.load import load
from palimpsest.probes.attempt import Budget
from palimpsest.probes.plan import Plan
from palimpsest.receipt.make import PATCH_FILE, Receipt
from palimpsest.receipt.make import audit as measure
from palimpsest.run.looking import Look, judges, plan
from palimpsest.run.requests import request


def audit(
    before: Any,
    after: Any,
    target: str | Sequence[str | Concept] | Request,
    *,
    out: str | Path | None = None,
    look: Look | None = None,
    planned: Plan | None = None,
    oracle: Any = None,
    resume: bool = False,
    resurfacing: Budget | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Receipt:
    """Measures what changed between two models, whoever edited them.

    Args:
        before: the untouched model.
        after: a Patch, the path of one, or the edited model or its path.
        target: what the edit was about.
        planned: by `plan`, where that was done already; then `look` only names judges and when to stop.
        resume: take the pictures that an interrupted audit left in `out`. resurfacing: with what to bring it back.
    """
    asked = target if isinstance(target, Request) else request(before, target)
    drawn = planned or plan(before, asked, look)
    return measure(
        before,
        edited(before, after) if isinstance(after, (str, Path)) else after,
        asked,
        plan=drawn,
        judges=judges(before, drawn, look),
        oracle=oracle,
        out=out,
        command=command,
        resume=resume,
        stop_early=look is not None and look.stop_early,
        resurfacing=resurfacing,
        trace=Trace(progress=progress),
    )


def edited(before: Any, path: str | Path) -> Any:
    """A patch file or another model."""
    if str(path).endswith(".safetensors") and _is_patch(Path(path)):
        return Patch.load(path)
    return load(path)


def _is_patch(path: Path) -> bool:
    """Whether a safetensors file's header says that it is a patch; false for checkpoints and missing files."""
    try:
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            return re.search(rb'"palimpsest"\s*:', f.read(min(size, 1 << 26))) is not None
    except OSError:
        return path.name == PATCH_FILE
