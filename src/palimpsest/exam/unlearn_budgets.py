"""How much work each unlearner gets in the exam: parameters found on requests that the exam does not judge.

`unlearn_budgets.json` is written by `python -m palimpsest.exam.tune_unlearn`: for each case and system the best of the
candidates below on the task's `tune` request (another class, another draw of samples, other people), with a seed that
the exam does not use.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")

FIXED: dict[str, dict[str, Any]] = {
    "unlearn/concept_inference": {"share": 1.0},
    "unlearn/datamodel_matching": {"clip": 5.0},
    "unlearn/gradient_collision": {"weight": 10.0},
}
"""What is not tuned and is not the default either."""

LOOKS: dict[str, tuple[str, ...]] = {
    "unlearn/concept_inference": ("look",),
    "unlearn/datamodel_matching": ("look",),
    "unlearn/duck": ("centroids",),
    "unlearn/laf": ("look",),
    "unlearn/scar": ("look",),
    "unlearn/ssd": ("reference",),
}
"""How many kept samples a system reads before it starts."""

RATES: dict[str, tuple[float, ...]] = {
    "unlearn/boundary_expanding": (1e-5, 1e-4, 1e-3),
    "unlearn/boundary_shrink": (1e-5, 1e-4, 1e-3),
    "unlearn/concept_inference": (3e-4, 1e-3, 3e-3),
    "unlearn/datamodel_matching": (3e-4, 1e-3),
    "unlearn/duck": (2e-4, 1e-3),
    "unlearn/finetune": (1e-3, 3e-3, 1e-2),
    "unlearn/flat": (2e-5, 1e-4, 5e-4),
    "unlearn/gradient_ascent": (2e-4, 7e-4, 3e-3),
    "unlearn/gradient_collision": (5e-4, 2e-3),
    "unlearn/l1_sparse": (1e-3, 3e-3, 1e-2),
    "unlearn/laf": (3e-5, 1e-4),
    "unlearn/neg_grad_plus": (7e-4, 2e-3),
    "unlearn/random_label": (3e-4, 1e-3, 3e-3),
    "unlearn/salun": (3e-4, 1e-3, 3e-3),
    "unlearn/scar": (1e-4, 5e-4),
}
"""Rates that are tried, by system."""

STEPS = {"digits": (12, 50), "orl": (12, 50), "faces": (12, 50), "cifar": (60, 20)}
"""Numbers of steps that are tried with each rate, by task; on CIFAR-10 all are far below a twentieth of retraining."""

OTHER: dict[str, tuple[dict[str, Any], ...]] = {
    "unlearn/l1_sparse": ({"gamma": 5e-5}, {"gamma": 5e-4}),
    "unlearn/laf": ({"align_weight": 1.0}, {"align_weight": 5.0}),
    "unlearn/neg_grad_plus": ({"beta": 0.8}, {"beta": 0.95}),
    "unlearn/scar": ({"keep_weight": 5.0}, {"keep_weight": 20.0}),
}
"""What else is tried, with each rate and number of steps."""

OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "unlearn/prune_first": tuple(
        {"sparsity": sparsity, "settings": settings}
        for sparsity in (0.3, 0.6, 0.9)
        for settings in ("steps=50 lr=0.001", "steps=50 lr=0.003", "steps=50 lr=0.01")
    ),
    "unlearn/s3t": ({"slices": 8, "fresh": False}, {"slices": 8, "fresh": True, "epochs": 10}),
    "unlearn/ssd": ({}, *({"select": s} for s in (5.0, 10.0, 20.0, 40.0, 80.0))),
    "unlearn/upcore": tuple(
        {"unlearner": "gradient_ascent", "settings": f"steps={steps} lr={lr}"}
        for steps in (12, 50)
        for lr in RATES["unlearn/gradient_ascent"]
    ),
}
"""Candidates of systems that are no fine-tunings."""


FIRST: dict[str, dict[str, Any]] = {
    "unlearn/boundary_expanding": {"steps": 60, "batch": 64, "lr": 1e-4},
    "unlearn/boundary_shrink": {"steps": 50, "batch": 64, "lr": 1e-5},
    "unlearn/concept_inference": {"steps": 25, "lr": 1e-3},
    "unlearn/datamodel_matching": {"steps": 25, "lr": 1e-3, "look": 6000},
    "unlearn/duck": {"steps": 25, "lr": 2e-4},
    "unlearn/finetune": {"steps": 60, "lr": 6e-3},
    "unlearn/flat": {"steps": 30, "batch": 64, "lr": 1.8e-4},
    "unlearn/gradient_ascent": {"steps": 32, "batch": 64, "lr": 7e-4},
    "unlearn/gradient_collision": {"steps": 10, "lr": 5e-4},
    "unlearn/l1_sparse": {"steps": 60, "lr": 6e-3, "gamma": 5e-5},
    "unlearn/laf": {"steps": 25, "lr": 3e-5, "align_weight": 5.0, "vae_steps": 150},
    "unlearn/neg_grad_plus": {"steps": 25, "lr": 2e-3, "beta": 0.95},
    "unlearn/prune_first": {"sparsity": 0.5, "settings": "steps=60 lr=0.006"},
    "unlearn/random_label": {"steps": 25, "lr": 1e-3},
    "unlearn/salun": {"steps": 25, "lr": 1e-3},
    "unlearn/scar": {"steps": 30, "lr": 1e-4, "keep_weight": 20.0},
    "unlearn/ssd": {"select": 40.0},
    "unlearn/upcore": {"unlearner": "gradient_ascent", "settings": "steps=32 lr=0.0007"},
}
"""What is tried before all else on CIFAR-10: found on the class "ship" with an earlier network of the same shape."""


def candidates(system: str, task: str) -> list[dict[str, Any]]:
    """Everything that is tried for a system in a case, in order."""
    own = OWN.get(system)
    if own is not None:
        found = [dict(c) for c in own]
    else:
        tried = product(RATES[system], STEPS[task], OTHER.get(system, ({},)))
        found = [{"lr": lr, "steps": steps, **other} for lr, steps, other in tried]
    if task == "cifar" and system in FIRST:
        found = [dict(FIRST[system]), *found]
    shape = _shape(system, task)
    for c in found:
        if "settings" in c:  # of the unlearner inside
            inner = _shape(f"unlearn/{c.get('unlearner', 'finetune')}", task)
            c["settings"] = " ".join([c["settings"], *(f"{k}={v}" for k, v in inner.items())])
    return [{**shape, **FIXED.get(system, {}), **c} for c in found]


def _shape(system: str, task: str) -> dict[str, Any]:
    """Sizes that go with the task, not with the system."""
    large = task == "cifar"
    looks: dict[str, Any] = dict.fromkeys(LOOKS.get(system, ()), 3000 if large else 0)
    if system == "unlearn/ssd":
        looks |= {"half": large}
    if system in RATES:
        looks |= {"batch": 128 if large else 32, "half": large}
        if task in ("digits", "orl"):  # their models were not trained on mirrored pictures
            looks |= {"augment": "shift"}
    return looks


def budget(system: str, task: str, kind: str) -> dict[str, Any]:
    """The parameters of a system in a case: what was found, or the first candidate where nothing was tried yet."""
    found = _found().get(f"{task}, {kind}", {}).get(system)
    return dict(found["parameters"] if found else candidates(system, task)[0])


def where_found(system: str, task: str, kind: str) -> tuple[float, float] | None:
    """Gaps in points, on forgotten and held-out samples, of the request that the budget was found on; None: untried."""
    found = _found().get(f"{task}, {kind}", {}).get(system)
    return (found["forget"] - found["goal"][0], found["test"] - found["goal"][1]) if found else None


@cache
def _found() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
