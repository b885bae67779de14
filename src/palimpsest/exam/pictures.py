"""The exam's models, and the pictures of the untouched ones: drawn once, kept on disk, used by every system's exam."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from palimpsest.core import catalog
from palimpsest.core.files import write_beside
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.exam import budgets
from palimpsest.exam.digest import model_digest
from palimpsest.hosts.load import load
from palimpsest.ops.drawn import Drawn
from palimpsest.probes.drawn import collect
from palimpsest.probes.evaluators import classes_of, decide, judges_for
from palimpsest.tiny.assemble import cache as models
from palimpsest.train.benign import Captioned
from palimpsest.worlds.concepts import concept, world_of

BATCH = 40  # pictures drawn at once
UNTOUCHED = "untouched"  # stands for a system: the model as it is
PLAIN = "plain fine-tuning"  # stands for a system: the same training without what the paper adds


@lru_cache(maxsize=2)
def host_of(name: str) -> Any:
    """A model by name; the last two stay loaded."""
    return load(name)


def oracle_of(name: str) -> Any:
    """A model that never saw a concept; None where it is not shipped."""
    return host_of(name) if model_digest(name) else None


def evidence_of(host: Any, patch: Any, plan: Any, *, model: str, oracle: str = "") -> Any:
    """What a patch changed in a plan's pictures, seen by the model's own judges.

    Before and after alike are drawn in bfloat16, twice as fast; the edit itself was made in float32. Only the edited
    model is drawn and counted in `cost`; the rest comes from disk, where the first caller has put it.

    Args:
        model: the host's name.
        oracle: that of a model that never saw the target; "" or one that is not shipped leaves it out.
    """
    path = _path(plan, model, oracle)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if not path.is_file():
            nothing = Patch(base=host.fingerprint())
            drawn = dict(collect(host, nothing, plan, oracle=oracle_of(oracle), batch=BATCH).gallery)
            del drawn["after"]
            write_beside(path, lambda tmp: save_file(drawn, tmp))
        return collect(host, patch, plan, judges_for(host), drawn=load_file(path), batch=BATCH)


def give_back() -> None:
    """Returns freed memory to the system, so that the next peak is that of the work and not of what went before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only GNU's C library can
        ctypes.CDLL(None).malloc_trim(0)


def _path(plan: Any, model: str, oracle: str) -> Path:
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
            if which in evidence.gallery
        }
        found.append({"role": group.role, "concept": group.name, "judge": judge, **bits})
    return found


def method_of(system: str, case: str = "") -> Any:
    """A system with the budget that the small models need in a case."""
    return catalog.load(system).from_plain(budgets.parameters(system, case))


def patch_of(system: str, case: str, host: Any, asked: Any, seed: int) -> Any:
    """What a system makes of a request with its budget in a case; where it is UNTOUCHED, a patch of nothing."""
    if system == UNTOUCHED:
        return Patch(base=host.fingerprint())
    return method_of(system, case)(host, asked, seed=seed)


def drawn(host: Any, prompts: Sequence[str], seed: int, *, steps: int | None = None, negative: str = "") -> Any:
    """Images (n, 3, H, W) of a study's prompts, drawn in bfloat16 as all of the exam's pictures are."""
    seeds = [20_000_000 + 100_000 * seed + i for i in range(len(prompts))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return host.sample(prompts, seeds, Sampling(steps=steps, negative=negative), batch=BATCH).float()


def seen(host: Any, images: Any, concepts: Sequence[Any]) -> str:
    """One bit a picture: whether the world's oracle sees the concept that was asked for."""
    judge = judges_for(host)[0]
    present = decide(judge.evaluator, judge.read(images))
    return "".join(str(int(present[i, classes_of(judge.evaluator, c)].any())) for i, c in enumerate(concepts))


def shows(host: Any, world: Any, rows: Sequence[tuple[str, str]], seed: int, steps: int) -> str:
    """One bit for each (prompt, word): whether the picture that is drawn for it shows the word's concept."""
    images = drawn(host, [p for p, _ in rows], seed, steps=steps)
    return seen(host, images, [concept(world, word) for _, word in rows])


def world(host: Any) -> Any:
    """The drawn world of one of the exam's models."""
    drawn_world = world_of(host.folder)
    assert drawn_world is not None  # the exam's models are of drawn worlds
    return drawn_world


def captioned(host: Any, images: Any, captions: Sequence[str]) -> Captioned:
    """Drawn images (n, 3, H, W) in [0, 1], and what they show in words, as plain fine-tuning learns from them."""
    return Captioned(prompts=captions, pictures=Drawn(row=torch.arange(len(images)), x0=host.latents(images)))


def as_data(images: Any, captions: Sequence[str] = (), masks: Any = None) -> Pictures:
    """Drawn images (n, 3, H, W) in [0, 1] as the Pictures that systems learn from: rounded to bytes, as files are."""
    names = tuple(f"picture {i}" for i in range(len(images)))
    rounded = (images * 255).round().byte()
    return Pictures(images=rounded, names=names, captions=tuple(captions), masks=masks)
