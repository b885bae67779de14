"""Regressors forget: an age-like number of drawn people, five of whom are forgotten; judged beside retrained models.

Every person has a number that the picture tells in part (0.8 of it is the tone of the skin) and that must be learnt by
heart for the rest, as apparent ages are. Pictures are those of the task "faces" at 16 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from palimpsest.core.trace import Trace
from palimpsest.data.forget import ForgetRequest, chosen, split
from palimpsest.data.read import Dataset
from palimpsest.exam import budgets
from palimpsest.exam.case import Case, Exam, Record, Records, cases
from palimpsest.exam.judged import Judged, Verdict
from palimpsest.exam.material import unlearnt
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.tables import means
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.ops import membership, statistics
from palimpsest.ops.statistics import Interval
from palimpsest.tiny import classifiers
from palimpsest.tiny.resnet import resnet, whiten
from palimpsest.train.randomness import generator
from palimpsest.train.scratch import Fit
from palimpsest.worlds.face_identity import GENES
from palimpsest.worlds.faces import FACES

RETRAINED = "retrained"  # stands for a system: a model that never saw the people
(CASE,) = CASES = cases(__file__)
WORSE, HARM, TOLD = 0.2, 0.1, 0.05  # relative error on forgotten and on held-out pictures, area of the attack
SHOWN = ("forgotten", "held out", "distance", "attack")


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The data with values as labels, the request, the model of everything and its retrain oracles."""

    train: Dataset
    test: Dataset
    request: ForgetRequest
    host: ClassifierHost
    oracles: tuple[ClassifierHost, ...]


@lru_cache(maxsize=1)
def work() -> Work:
    """Cost: four trainings of 2 to 5 s."""
    task = classifiers.faces()
    request = task.forget[0]
    train, test = (_with_values(part) for part in (task.train, task.test))
    kept = split(train, request)["retain"]
    oracles = tuple(_trained(kept, seed) for seed in EXAM.seeds)
    return Work(train=train, test=test, request=request, host=_trained(train.samples, 0), oracles=oracles)


def _with_values(data: Dataset) -> Dataset:
    names = FACES.vocabulary["identity"]
    who = torch.tensor([names.index(g) for g in data.samples.columns["identity"]])
    people = torch.arange(len(names))
    skin = FACES.identity_vectors(people)[:, GENES.index("skin")]
    own = torch.randn(len(names), generator=torch.Generator().manual_seed(5))
    values = 0.8 * (skin - skin.mean()) / skin.std() + 0.6 * own
    images = torch.nn.functional.avg_pool2d(data.samples.images.float(), 2).round().byte()
    return replace(data, samples=replace(data.samples, images=images, labels=values[who].float()), classes=())


def _trained(samples: Any, seed: int) -> ClassifierHost:
    torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator(seed, "weights"))))
    model = resnet(1, 8)
    whiten(model, samples.pixels(slice(0, 1000)))
    host = ClassifierHost(model, name=f"values-{seed}", labels=("value",), head="head", backbone="backbone")
    Fit(**CASE["fit"])(host, samples, seed=seed, trace=Trace())
    return host


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Errors, distance and attack of a regressor after a system, or of a stand-in."""
    at = work()
    if system in (UNTOUCHED, RETRAINED):
        return dict(measured(at, at.host if system == UNTOUCHED else at.oracles[seed]))
    patch, cost = unlearnt(system, budgets.parameters(system, "values"), at.train, at.request, at.host, seed)
    with patch.applied(at.host):
        numbers = measured(at, at.host)
    share = round(cost["passes"] / case["fit"]["epochs"], 4)
    return {"parameters": patch.provenance["parameters"], "of_retraining": share, **numbers}


@torch.no_grad()
def measured(at: Work, host: ClassifierHost) -> dict[str, float]:
    """Errors, distance to the oracles' answers, and the attack, of one model."""
    gone = [chosen(part, at.request) for part in (at.train, at.test)]
    answers = [host.logits(part.samples.pixels())[:, 0] for part in (at.train, at.test)]
    errors = [(a - part.samples.labels).abs() for a, part in zip(answers, (at.train, at.test), strict=True)]
    images = at.train.samples.pixels()[gone[0]]
    never = torch.cat([o.logits(images)[:, 0] for o in at.oracles if o is not host])
    numbers = {
        "forgotten": errors[0][gone[0]].mean(),
        "retained": errors[0][~gone[0]].mean(),
        "held out": errors[1][~gone[1]].mean(),
        "distance": wasserstein_distance(answers[0][gone[0]].numpy(), never.numpy()),
        "attack": membership.auc(-errors[0][gone[0]], -errors[1][gone[1]]).value,
    }
    return {name: round(float(x), 4) for name, x in numbers.items()}


def _never(by: Records) -> dict[str, float]:
    """Means of the retrained models."""
    return {k: float(np.mean([r[k] for r in by[RETRAINED]])) for k in (*SHOWN, "retained")}


def _means(records: Sequence[Record]) -> dict[str, Interval]:
    return {k: statistics.mean([r[k] for r in records]) for k in SHOWN}


BESIDE = (RETRAINED,)
MEASURED = (
    "a regressor's error on forgotten pictures within 20 % of retraining's, on others at most 10 % above, membership "
    "attack within 0.05"
)


def judge(system: str, by: Records) -> Judged:
    """The verdict on a regressor's claim."""
    numbers, never = _means(by[system]), _never(by)
    words = [f"{k} {numbers[k].value:.2f} against {never[k]:.2f}" for k in ("forgotten", "held out", "attack")]
    return Judged(measured=MEASURED, found=", ".join(words), verdict=verdict(numbers, never))


def verdict(numbers: Mapping[str, Interval], never: Mapping[str, float]) -> Verdict:
    """Of one system's means beside those of retrained models: all three bounds, some, or none of forgetting's."""
    held = [
        abs(numbers["forgotten"].value / never["forgotten"] - 1) <= WORSE,
        numbers["held out"].value <= (1 + HARM) * never["held out"],
        abs(numbers["attack"].value - never["attack"]) <= TOLD,
    ]
    return "holds" if all(held) else "holds in part" if held[1] and (held[0] or held[2]) else "does not hold here"


COLUMNS = {
    **{f"error, {name}": means(name, "{:.2f}".format) for name in SHOWN[:2]},
    **{name: means(name, "{:.2f}".format) for name in SHOWN[2:]},
    "of retraining": lambda s, by: f"{np.mean([r['of_retraining'] for r in by[s]]):.3f}" if "/" in s else "",
    "verdict": lambda s, by: f"**{verdict(_means(by[s]), _never(by))}**" if "/" in s else "",
}
SYSTEMS = (UNTOUCHED, RETRAINED, "unlearn/blindspot", "unlearn/gaussian_amnesiac")
EXAM = Exam(
    name="values", verb="unlearn", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS, with_verb=True
)
