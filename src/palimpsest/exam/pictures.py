"""The exam's models, and the pictures of the untouched ones: drawn once, kept on disk, used by every system's exam."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from palimpsest.core.files import write_beside

BATCH = 40  # pictures drawn at once


@lru_cache(maxsize=2)
def host_of(name: str) -> Any:
    """A model by name; the last two stay loaded."""
    from palimpsest.hosts.load import load

    return load(name)


def oracle_of(name: str) -> Any:
    """A model that never saw a concept; None where it is not shipped."""
    return host_of(name) if model_digest(name) else None


@cache
def model_digest(name: str) -> str:
    """Of all files of a shipped model; "" where it is not shipped."""
    from palimpsest import tiny

    if name.removeprefix("tiny/") not in tiny.names():
        return ""
    h = hashlib.sha256()
    for file in sorted(p for p in tiny.path(name.removeprefix("tiny/")).rglob("*") if p.is_file()):
        h.update(file.name.encode())
        h.update(file.read_bytes())
    return h.hexdigest()


def evidence_of(host: Any, patch: Any, plan: Any, *, model: str, oracle: str = "") -> Any:
    """What a patch changed in a plan's pictures, seen by the model's own judges.

    Before and after alike are drawn in bfloat16, twice as fast; the edit itself was made in float32. Only the edited
    model is drawn and counted in `cost`; the rest comes from disk, where the first caller has put it.

    Args:
        model: the host's name.
        oracle: that of a model that never saw the target; "" or one that is not shipped leaves it out.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from palimpsest.core.patch import Patch
    from palimpsest.probes.evaluators import judges_for
    from palimpsest.probes.evidence import collect

    path = _path(plan, model, oracle)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if not path.is_file():
            nothing = Patch(base=host.fingerprint())
            drawn = dict(collect(host, nothing, plan, oracle=oracle_of(oracle), batch=BATCH).pictures)
            del drawn["after"]
            write_beside(path, lambda tmp: save_file(drawn, tmp))
        return collect(host, patch, plan, judges_for(host), drawn=load_file(path), batch=BATCH)


def give_back() -> None:
    """Returns freed memory to the system, so that the next peak is that of the work and not of what went before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only GNU's C library can
        ctypes.CDLL(None).malloc_trim(0)


def _path(plan: Any, model: str, oracle: str) -> Path:
    from palimpsest.core.method import versions
    from palimpsest.tiny.assemble import cache as models

    parts = [BATCH, plan.plain(), model_digest(model), model_digest(oracle), versions()]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return models().parent / "exam" / f"{name}.safetensors"


def groups_of(evidence: Any) -> list[dict[str, str]]:
    """For each concept that was asked for: one bit a picture, whether it shows it, in each set of pictures."""
    found = []
    for g, judge, classes in evidence.asked():
        group = evidence.plan.groups[g]
        rows = evidence.plan.rows(group=g)
        bits = {
            which: "".join(str(int(b)) for b in evidence.present(judge, which, classes)[rows])
            for which in ("before", "after", "oracle")
            if which in evidence.pictures
        }
        found.append({"role": group.role, "concept": group.name, "judge": judge, **bits})
    return found
