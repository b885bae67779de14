"""Corrective unlearning: a model learnt poisoned pictures, and only a fifth of them is known.

A tenth of the digits bears a white square in a corner and the label 0, so the square alone makes the model say 0. The
unlearners are given a fifth of these pictures; the others stay in what they are told to keep.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest.core import catalog
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.core.samples import Samples
from palimpsest.data.forget import ForgetRequest, split
from palimpsest.data.read import Dataset
from palimpsest.exam.unlearn_budgets import budget
from palimpsest.exam.unlearn_claims import Judged, Verdict
from palimpsest.exam.unlearn_material import unlearnt
from palimpsest.exam.unlearn_values import stored_in
from palimpsest.exam.work import source_digest
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.tiny import classifiers
from palimpsest.tiny.train_classifier import accuracy, logits, train

VERSION = 1  # of the work below
OWNER = "unlearn/ssd"
SYSTEMS = ("ssd", "finetune", "gradient_ascent", "neg_grad_plus", "random_label", "salun")
SEEDS = (0, 1, 2)
PART, NEVER = "retrained without the known part", "never poisoned"
POISONED, KNOWN, GOAL, SIDE = 100, 20, 0, 3  # pictures, of which known; the label they bear; pixels of the square
GONE, HARM = 20.0, 3.0  # the square works in at most this share of pictures; points of accuracy lost

BUDGETS: dict[str, dict[str, Any]] = {"unlearn/ssd": {"batch": 1}}
"""Others have those of the exam's random samples."""

HEAD = """### digits, poison of which a fifth is known

A square in a corner and the label 0 on {poisoned} of 1,000 digits; {known} of them are given as what must be forgotten.
*Square works*: held-out digits other than 0 that the square makes a 0, in percent; accuracy is of held-out digits
without it. Means of {seeds} seeds with Student's interval. The claim of corrective unlearning holds where the square
works in at most {gone:g} % and at most {harm:g} points of accuracy are lost, while retraining without the known part
leaves the square at work.

| model | square works | accuracy | of retraining | verdict |
|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Poisoned:
    """The poisoned data, the request for the part that is known, the held-out pictures and what was learnt."""

    train: Dataset
    request: ForgetRequest
    test: Samples
    marked: Samples
    host: ClassifierHost


@lru_cache(maxsize=2)
def poisoned(seed: int = 0, corner: bool = False) -> Poisoned:
    """The task.

    Args:
        corner: another corner and another draw, for finding budgets.

    Cost: one training of 2 s.
    """
    task = classifiers.digits()
    order = torch.randperm(len(task.train.samples), generator=torch.Generator().manual_seed(7 + corner))
    bad = order[:POISONED]
    images, labels = task.train.samples.images.clone(), task.train.samples.labels.clone()
    images[bad], labels[bad] = squared(images[bad], corner), GOAL
    data = replace(task.train, samples=replace(task.train.samples, images=images, labels=labels))
    other = task.test.samples[task.test.samples.labels != GOAL]
    return Poisoned(
        train=data,
        request=ForgetRequest(kind="samples", items=tuple(map(str, sorted(bad[:KNOWN].tolist())))),
        test=task.test.samples,
        marked=replace(other, images=squared(other.images, corner)),
        host=_host(data.samples, seed),
    )


def squared(images: torch.Tensor, corner: bool) -> torch.Tensor:
    """(n, 3, H, W) uint8 with a white square in the lower right corner, or in the upper left one."""
    out = images.clone()
    rows = slice(1, 1 + SIDE) if corner else slice(-1 - SIDE, -1)
    out[:, :, rows, rows] = 255
    return out


def _host(samples: Samples, seed: int) -> ClassifierHost:
    task = classifiers.digits()
    model = train(samples, len(task.train.classes), task.recipe, seed=seed)
    return ClassifierHost(model, name="poisoned", labels=task.train.classes, head="head", backbone="backbone")


def due(results: Path, again: bool = False) -> bool:
    """Whether it was not examined as it is now."""
    return again or stored_in(results, OWNER).get("poison", {}).get("key") != key()


def key() -> str:
    """Of all systems' source and budgets, and of the work."""
    parts = [[source_digest(catalog.find(f"unlearn/{s}").module), parameters_of(f"unlearn/{s}")] for s in SYSTEMS]
    text = json.dumps([VERSION, parts, SEEDS, POISONED, KNOWN, GOAL, SIDE], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(results: Path) -> Path:
    """Examines the systems and writes "poison" into `results/unlearn/ssd.json`. Cost: half a minute."""
    at = poisoned()
    rows: list[dict[str, Any]] = [{"model": "untouched", **measured(at, at.host)}]
    parts = split(at.train, at.request)
    clean = classifiers.digits()
    bad = (at.train.samples.images != clean.train.samples.images).flatten(1).any(1)
    for name, samples in (
        (PART, parts.retain),
        (NEVER, at.train.samples[~bad]),
    ):
        rows += [{"model": name, "seed": seed, **measured(at, _host(samples, seed))} for seed in SEEDS]
    for system in SYSTEMS:
        rows += [run_one(at, f"unlearn/{system}", parameters_of(f"unlearn/{system}"), seed) for seed in SEEDS]
    stored = stored_in(results, OWNER) | {"poison": {"key": key(), "rows": rows}}
    return write_text(results / f"{OWNER}.json", json.dumps(stored, indent=1, sort_keys=True) + "\n")


def parameters_of(system: str) -> dict[str, Any]:
    """A system's budget."""
    return BUDGETS.get(system) or budget(system, "digits", "samples")


def run_one(at: Poisoned, system: str, parameters: dict[str, Any], seed: int) -> dict[str, Any]:
    """One system with one seed."""
    try:
        patch, cost = unlearnt(system, parameters, at.train, at.request, at.host, seed)
    except PalimpsestError as e:
        return {"model": system, "seed": seed, "refused": str(e)}
    with patch.applied(at.host):
        found = measured(at, at.host)
    share = round(cost["passes"] / classifiers.digits().recipe.epochs, 4)
    return {
        "model": system,
        "seed": seed,
        "of_retraining": share,
        "parameters": patch.provenance["parameters"],
        **found,
    }


@torch.no_grad()
def measured(at: Poisoned, host: ClassifierHost) -> dict[str, float]:
    """In percent: how often the square works, and accuracy without it."""
    marked = logits(host.root, at.marked).argmax(1)
    return {
        "works": round(100 * float((marked == GOAL).float().mean()), 3),
        "accuracy": round(accuracy(logits(host.root, at.test), at.test.labels), 3),
    }


def section(results: Path) -> str:
    """The table; "" where nothing was measured."""
    rows = stored_in(results, OWNER).get("poison", {}).get("rows")
    if not rows:
        return ""
    lines = []
    for name in dict.fromkeys(r["model"] for r in rows):
        runs = [r for r in rows if r["model"] == name and "works" in r]
        shares = [r["of_retraining"] for r in runs if "of_retraining" in r]
        cells = [_interval(statistics.mean([r[k] for r in runs])) if runs else "" for k in ("works", "accuracy")]
        said = verdict(rows, name) if name.startswith("unlearn/") else ""
        called = f"`{name}`" if name.startswith("unlearn/") else f"*{name}*"
        lines.append(f"| {called} | {' | '.join(cells)} | {np.mean(shares):.3f} | **{said}** |" if shares else
                     f"| {called} | {' | '.join(cells)} | | |")  # fmt: skip
    head = HEAD.format(poisoned=POISONED, known=KNOWN, seeds=len(SEEDS), gone=GONE, harm=HARM)
    return head + "\n".join(lines) + "\n"


def judged(results: Path) -> dict[str, Judged]:
    """The verdict on the claim of corrective unlearning; {} where nothing was measured."""
    rows = stored_in(results, OWNER).get("poison", {}).get("rows")
    if not rows:
        return {}
    works = {name: _of(rows, name, "works") for name in (OWNER, PART)}
    lost = _of(rows, OWNER, "accuracy") - _of(rows, NEVER, "accuracy")
    return {
        OWNER: Judged(
            measured="poison of which a fifth is known: it works in at most 20 % of pictures and at most 3 points of "
            "accuracy are lost, where retraining without that part leaves it at work",
            found=f"works in {works[OWNER]:.0f} %, after retraining {works[PART]:.0f} %; accuracy {lost:+.1f} points",
            verdict=verdict(rows, OWNER),
        )
    }


def _of(rows: Sequence[dict[str, Any]], model: str, what: str) -> float:
    values = [r[what] for r in rows if r["model"] == model and what in r]
    return float(np.mean(values)) if values else math.nan


def verdict(rows: Sequence[dict[str, Any]], system: str) -> Verdict:
    """Whether the claim of corrective unlearning holds for a system; baselines are held to the same bounds."""

    gone = _of(rows, system, "works") <= GONE
    kept = _of(rows, system, "accuracy") >= _of(rows, NEVER, "accuracy") - HARM
    stays = _of(rows, PART, "works") > GONE
    less = _of(rows, system, "works") < _of(rows, PART, "works") and kept
    return "holds" if gone and kept and stays else "holds in part" if less else "does not hold here"


def _interval(x: Interval) -> str:
    return f"{x.value:.1f}" + (f" ({x.low:.1f} to {x.high:.1f})" if math.isfinite(x.low) else "")
