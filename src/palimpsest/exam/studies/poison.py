"""Corrective unlearning: a model learnt poisoned pictures, and only a fifth of them is known.

A tenth of the digits bears a white square in a corner and the label 0, so the square alone makes the model say 0. The
unlearners are given a fifth of these pictures; the others stay in what they are told to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from palimpsest.data.forget import ForgetRequest, split
from palimpsest.data.read import Dataset
from palimpsest.exam import budgets
from palimpsest.exam.case import Case, Exam, Records, cases
from palimpsest.exam.judged import Judged, Verdict
from palimpsest.exam.material import unlearnt
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.tables import means
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.tiny import classifiers

PART, NEVER = "retrained without the known part", "never poisoned"
(CASE,) = CASES = cases(__file__)
GONE, HARM = 20.0, 3.0  # the square works in at most this share of pictures; points of accuracy lost


@dataclass(frozen=True, kw_only=True, eq=False)
class Poisoned:
    """The poisoned data, the request for the part that is known, the held-out pictures and what was learnt."""

    train: Dataset
    clean: Any
    request: ForgetRequest
    test: Any
    marked: Any
    host: ClassifierHost


@lru_cache(maxsize=1)
def poisoned() -> Poisoned:
    """The task. Cost: one training of 2 s."""
    task = classifiers.digits()
    order = torch.randperm(len(task.train.samples), generator=torch.Generator().manual_seed(7))
    bad = order[: CASE["poisoned"]]
    images, labels = task.train.samples.images.clone(), task.train.samples.labels.clone()
    images[bad], labels[bad] = squared(images[bad]), CASE["goal"]
    data = replace(task.train, samples=replace(task.train.samples, images=images, labels=labels))
    other = task.test.samples[task.test.samples.labels != CASE["goal"]]
    differs = (images != task.train.samples.images).flatten(1).any(1)
    return Poisoned(
        train=data,
        clean=data.samples[~differs],
        request=ForgetRequest(kind="samples", items=tuple(map(str, sorted(bad[: CASE["known"]].tolist())))),
        test=task.test.samples,
        marked=replace(other, images=squared(other.images)),
        host=_host(data.samples, 0),
    )


def squared(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) uint8 with a white square near the lower right corner."""
    out = images.clone()
    rows = slice(-1 - CASE["side"], -1)
    out[:, :, rows, rows] = 255
    return out


def _host(samples: Any, seed: int) -> ClassifierHost:
    task = classifiers.digits()
    model = classifiers.trained(task, samples, seed=seed)
    return ClassifierHost(model, name="poisoned", labels=task.train.classes, head="head", backbone="backbone")


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """How often the square works and accuracy without it, after a system or of a stand-in. Cost: seconds."""
    at = poisoned()
    if system == UNTOUCHED:
        return measured(at, at.host)
    if system in (PART, NEVER):
        return measured(at, _host(split(at.train, at.request)["retain"] if system == PART else at.clean, seed))
    parameters = budgets.parameters(system, "poison")
    patch, cost = unlearnt(system, parameters, at.train, at.request, at.host, seed)
    with patch.applied(at.host):
        numbers = measured(at, at.host)
    share = round(cost["passes"] / classifiers.digits().recipe.epochs, 4)
    return {"of_retraining": share, "parameters": patch.provenance["parameters"], **numbers}


@torch.no_grad()
def measured(at: Poisoned, host: ClassifierHost) -> dict[str, float]:
    """In percent: how often the square works, and accuracy without it."""
    marked, plain = (host.logits(samples.pixels()).argmax(1) for samples in (at.marked, at.test))
    right = {"works": marked == CASE["goal"], "accuracy": plain == at.test.labels}
    return {name: round(100 * float(rows.float().mean()), 3) for name, rows in right.items()}


def verdict(system: str, by: Records) -> Verdict:
    """Whether the claim of corrective unlearning holds for a system; baselines are held to the same bounds."""
    gone = _mean(by, system, "works") <= GONE
    kept = _mean(by, system, "accuracy") >= _mean(by, NEVER, "accuracy") - HARM
    stays = _mean(by, PART, "works") > GONE
    less = _mean(by, system, "works") < _mean(by, PART, "works") and kept
    return "holds" if gone and kept and stays else "holds in part" if less else "does not hold here"


BESIDE = (PART, NEVER)
MEASURED = (
    "poison of which a fifth is known: it works in at most 20 % of pictures and at most 3 points of accuracy are lost, "
    "where retraining without that part leaves it at work"
)


def judge(system: str, by: Records) -> Judged:
    """The verdict on the claim of corrective unlearning."""
    works = {name: _mean(by, name, "works") for name in (system, PART)}
    lost = _mean(by, system, "accuracy") - _mean(by, NEVER, "accuracy")
    return Judged(
        measured=MEASURED,
        found=f"works in {works[system]:.0f} %, after retraining {works[PART]:.0f} %; accuracy {lost:+.1f} points",
        verdict=verdict(system, by),
    )


def _mean(by: Records, system: str, what: str) -> float:
    values = [r[what] for r in by.get(system, ()) if what in r]
    return float(np.mean(values)) if values else float("nan")


COLUMNS = {
    "square works": means("works"),
    "accuracy": means("accuracy"),
    "of retraining": lambda s, by: f"{_mean(by, s, 'of_retraining'):.3f}" if "/" in s else "",
    "verdict": lambda s, by: f"**{verdict(s, by)}**" if "/" in s else "",
}
LEAVES = ("ssd", "finetune", "gradient_ascent", "neg_grad_plus", "random_label", "salun")
SYSTEMS = (UNTOUCHED, PART, NEVER, *(f"unlearn/{leaf}" for leaf in LEAVES))
EXAM = Exam(
    name="poison", verb="unlearn", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS, with_verb=True
)
