"""Regressors forget: an age-like number of drawn people, five of whom are forgotten; judged beside retrained models.

Every person has a number that the picture tells in part (0.8 of it is the tone of the skin) and that must be learnt by
heart for the rest, as apparent ages are. Pictures are those of the task "faces" at 16 pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.files import write_text
from palimpsest.data.forget import ForgetRequest, chosen, split
from palimpsest.data.read import Dataset
from palimpsest.exam.summary import read
from palimpsest.exam.unlearn_claims import Judged, Verdict
from palimpsest.exam.unlearn_material import unlearnt
from palimpsest.exam.work import source_digest
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.ops import membership, statistics
from palimpsest.ops.statistics import Interval
from palimpsest.tiny import classifiers
from palimpsest.tiny.resnet import resnet, whiten
from palimpsest.train.randomness import generator
from palimpsest.train.scratch import Fit

SYSTEMS = ("unlearn/blindspot", "unlearn/gaussian_amnesiac")
SEEDS = (0, 1, 2)
VERSION = 1  # of the work below
FIT = Fit(epochs=12.0, lr=0.02, batch=64, augment="shift")
WORSE, HARM, TOLD = 0.2, 0.1, 0.05  # relative error on forgotten and on held-out pictures, area of the attack

BUDGETS: dict[str, dict[str, Any]] = {
    "unlearn/blindspot": {"augment": "shift", "batch": 32, "steps": 60, "lr": 3e-4, "weight": 0.1},
    "unlearn/gaussian_amnesiac": {"augment": "shift", "batch": 32, "steps": 30, "lr": 1e-3, "keep_weight": 2.0},
}
"""Found on other people than those that the exam forgets."""

HEAD = """### faces, an age-like number (regression)

A number for each of 60 drawn people, told by the picture in part; five people are forgotten. Mean absolute errors of
standardised numbers, means of {seeds} seeds with Student's interval; *distance* is Wasserstein's between the answers on
forgotten pictures and a retrained model's, *attack* the area under the curve of telling forgotten pictures from others
of the same people by their error. The claim holds where the error on forgotten pictures is within 20 %
of retraining's, that on held-out pictures of others at most 10 % above it, and the attack within 0.05 of it.

| system | the paper claims | error, forgotten | held out | distance | attack | of retraining | verdict |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The data with values as labels, the request, the model of everything and its retrain oracles."""

    train: Dataset
    test: Dataset
    request: ForgetRequest
    host: ClassifierHost
    oracles: tuple[ClassifierHost, ...]


@lru_cache(maxsize=2)
def work(tune: bool = False) -> Work:
    """Cost: four trainings of 2 to 5 s."""
    task = classifiers.faces()
    request = (task.tune if tune else task.forget)[0]
    train, test = (_with_values(part) for part in (task.train, task.test))
    kept = split(train, request).retain
    seeds = (0,) if tune else SEEDS
    return Work(
        train=train,
        test=test,
        request=request,
        host=_trained(train.samples, 0),
        oracles=tuple(_trained(kept, seed) for seed in seeds),
    )


def _with_values(data: Dataset) -> Dataset:
    from palimpsest.worlds.face_identity import GENES
    from palimpsest.worlds.faces import FACES

    names = FACES.vocabulary["identity"]
    who = torch.tensor([names.index(g) for g in data.samples.groups])
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
    from palimpsest.core.trace import Trace

    FIT(host, samples, seed=seed, trace=Trace())
    return host


def run(results: Path, systems: Sequence[str]) -> list[Path]:
    """Examines these systems and writes their part of `results/unlearn/<system>.json`. Cost: under a minute."""
    at, paths = work(), []
    oracles = [measured(at, host) for host in at.oracles]
    for system in systems:
        path = results / f"{system}.json"
        runs = [_run(at, system, BUDGETS.get(system, {}), seed) for seed in SEEDS]
        found = {"key": key(system), "untouched": measured(at, at.host), "oracles": oracles, "runs": runs}
        stored = stored_in(results, system) | {"values": found}
        paths.append(write_text(path, json.dumps(stored, indent=1, sort_keys=True) + "\n"))
    return paths


def due(results: Path, systems: Sequence[str], again: bool = False) -> list[str]:
    """Which of these systems were not examined as they are now."""
    mine = [s for s in SYSTEMS if s in systems]
    return [s for s in mine if again or stored_in(results, s).get("values", {}).get("key") != key(s)]


def key(system: str) -> str:
    """Of a system's source, its budget and the work."""
    parts = [source_digest(catalog.find(system).module), BUDGETS.get(system), VERSION, asdict(FIT), SEEDS]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stored_in(results: Path, system: str) -> dict[str, Any]:
    """What is known of a system."""
    path = results / f"{system}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"system": system, "cases": []}


def _run(at: Work, system: str, parameters: dict[str, Any], seed: int) -> dict[str, Any]:
    try:
        patch, cost = unlearnt(system, parameters, at.train, at.request, at.host, seed)
    except BadRequest as e:
        return {"seed": seed, "refused": str(e)}
    with patch.applied(at.host):
        found = measured(at, at.host)
    share = round(cost["passes"] / FIT.epochs, 4)
    return {"seed": seed, "parameters": patch.provenance["parameters"], "of_retraining": share, **found}


@torch.no_grad()
def measured(at: Work, host: ClassifierHost) -> dict[str, float]:
    """Errors, distance to the oracles' answers, and the attack, of one model."""
    gone = [chosen(part, at.request) for part in (at.train, at.test)]
    answers = [host.logits(part.samples.pixels())[:, 0] for part in (at.train, at.test)]
    errors = [(a - part.samples.labels).abs() for a, part in zip(answers, (at.train, at.test), strict=True)]
    images = at.train.samples.pixels()[gone[0]]
    others = [o for o in at.oracles if o is not host] or list(at.oracles)
    never = torch.cat([o.logits(images)[:, 0] for o in others])
    return {
        "forgotten": _mean(errors[0][gone[0]]),
        "retained": _mean(errors[0][~gone[0]]),
        "held out": _mean(errors[1][~gone[1]]),
        "distance": round(_wasserstein(answers[0][gone[0]], never), 4),
        "attack": round(membership.auc(-errors[0][gone[0]], -errors[1][gone[1]]).value, 4),
    }


def _wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein's first distance of two samples of numbers."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a.numpy(), b.numpy()))


def _mean(x: Tensor) -> float:
    return round(float(x.mean()), 4)


def section(results: Path) -> str:
    """The table; "" where nothing was measured."""
    found: dict[str, Any] = read(results, "unlearn", "values")
    if not found:
        return ""
    lines = []
    first = next(iter(found.values()))
    never = {k: float(np.mean([o[k] for o in first["oracles"]])) for k in first["untouched"]}
    for name, row in (("*untouched*", first["untouched"]), ("*retrained*", never)):
        lines.append(_row(name, "", {k: Interval(v, -math.inf, math.inf) for k, v in row.items()}, "", ""))
    for system in SYSTEMS:
        if system not in found:
            continue
        runs = [r for r in found[system]["runs"] if "forgotten" in r]
        entry = catalog.find(system)
        if not runs:
            lines.append(_row(f"`{system}`", "", {}, "", found[system]["runs"][0]["refused"]))
            continue
        numbers = {k: statistics.mean([r[k] for r in runs]) for k in never}
        share = float(np.mean([r["of_retraining"] for r in runs]))
        said = f"**{verdict(numbers, never)}**"
        lines.append(
            _row(f"[{entry.card.name}]({entry.card.paper}) `{system}`", entry.card.claim, numbers, f"{share:.3f}", said)
        )
    return HEAD.format(seeds=len(SEEDS)) + "\n".join(lines) + "\n"


def judged(results: Path) -> dict[str, Judged]:
    """The verdicts on the regressors' claims."""
    found: dict[str, Any] = read(results, "unlearn", "values")
    made = {}
    for system in (s for s in SYSTEMS if s in found):
        runs = [r for r in found[system]["runs"] if "forgotten" in r]
        never = {k: float(np.mean([o[k] for o in found[system]["oracles"]])) for k in found[system]["untouched"]}
        numbers = {k: statistics.mean([r[k] for r in runs]) for k in never}
        words = [f"{k} {numbers[k].value:.2f} against {never[k]:.2f}" for k in ("forgotten", "held out", "attack")]
        made[system] = Judged(
            measured="a regressor's error on forgotten pictures within 20 % of retraining's, on others at most 10 % "
            "above, membership attack within 0.05",
            found=", ".join(words),
            verdict=verdict(numbers, never),
        )
    return made


def verdict(numbers: dict[str, Interval], never: dict[str, float]) -> Verdict:
    """Of one system's means beside those of retrained models: all three bounds, some, or none of forgetting's."""
    held = [
        abs(numbers["forgotten"].value / never["forgotten"] - 1) <= WORSE,
        numbers["held out"].value <= (1 + HARM) * never["held out"],
        abs(numbers["attack"].value - never["attack"]) <= TOLD,
    ]
    return "holds" if all(held) else "holds in part" if held[1] and (held[0] or held[2]) else "does not hold here"


def _row(name: str, claim: str, numbers: dict[str, Interval], share: str, said: str) -> str:
    cells = [_interval(numbers[k]) if k in numbers else "" for k in ("forgotten", "held out", "distance", "attack")]
    return "| " + " | ".join([name, claim, *cells, share, said]) + " |"


def _interval(x: Interval) -> str:
    return f"{x.value:.2f}" + (f" ({x.low:.2f} to {x.high:.2f})" if math.isfinite(x.low) else "")
