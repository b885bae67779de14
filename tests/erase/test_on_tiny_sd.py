"""Each eraser on the small model that was trained on drawings: the target and what is kept, as its exam record says.

The record gives settings, seed and verdict: most erase the target and hold the rest, some do not here (few-shot
erasing, SAFREE), and two have another aim (debiasing). Pictures are other ones than the exam's, so rates agree within
chance. Who trained for long in the exam is a second look at what its record says from three seeds: `make long` has it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.core.concept import Concept
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.load import load
from palimpsest.probes.evaluators import classes_of, decide, judges_for
from palimpsest.run.requests import concepts, request

RECORDS = Path(__file__).parents[2] / "exam" / "results" / "erase"
SYSTEMS = sorted(i for i in catalog.entries() if i.startswith("erase/"))
PROMPTS = 12  # of the target and of what is kept
CHANCE = 0.35  # how far two shares of twelve pictures lie apart by chance, once in fifty
LONG, HALVED = 8.0, 40.0  # seconds of erasing in the exam; who needs the latter takes half of its steps here


@cache
def model() -> Any:
    return load(tiny.path("sd"))


def recorded(system: str) -> dict[str, Any]:
    """The exam's record of erasing "star", seed 0."""
    cases = json.loads((RECORDS / f"{system.split('/')[1]}.json").read_text(encoding="utf-8"))["cases"]
    of_star = (c for c in cases if c["case"].get("concept") == "star" and c["case"]["host"] == "tiny/sd")
    return next(c for c in of_star if c["seed"] == 0)


def settings(record: dict[str, Any], system: str) -> dict[str, Any]:
    """The record's, with half of the steps where it took long; without parameters that are gone since."""
    known = {p.name for p in catalog.find(system).parameters}
    found = {k: v for k, v in record["parameters"].items() if k in known}
    return found | ({"steps": found["steps"] // 2} if record["cost"]["seconds"] > HALVED and "steps" in found else {})


def share(record: dict[str, Any], role: str) -> float:
    """Of a role's pictures after the edit, those that show what they are asked for."""
    bits = "".join(group["after"] for group in record["groups"] if group["role"] == role)
    return bits.count("1") / len(bits)


def shown(about: list[tuple[str, Concept]]) -> float:
    """The share of prompts whose concept the judge sees in the picture that the model draws."""
    host = model()
    (judge,) = judges_for(host)
    images = host.sample([prompt for prompt, _ in about], list(range(500, 500 + len(about))), Sampling(steps=15))
    present = decide(judge.evaluator, judge.read(images))
    return sum(bool(p[classes_of(judge.evaluator, c)].any()) for p, (_, c) in zip(present, about, strict=True)) / len(
        about
    )


@cache
def asked() -> tuple[list[tuple[str, Concept]], list[tuple[str, Concept]]]:
    """Prompts for the target, and for its neighbours."""
    host, draws = model(), torch.Generator().manual_seed(77)
    star, *kept = concepts(host, ["star", "moon", "ring", "heart"])
    assert host.knows is not None
    return (
        [(p, star) for p in host.knows.prompts(star, PROMPTS, generator=draws)],
        [(p, c) for c in kept for p in host.knows.prompts(c, PROMPTS // 3, generator=draws)],
    )


def listed(system: str) -> Any:
    try:
        long = recorded(system)["cost"]["seconds"] > LONG
    except (OSError, StopIteration):  # the test itself says what a system without a record lacks
        long = False
    return pytest.param(system, marks=pytest.mark.long if long else pytest.mark.slow)


@pytest.mark.slow
def test_the_untouched_model_draws_what_it_is_asked_for() -> None:
    target, kept = asked()
    assert shown(target) > 0.9
    assert shown(kept) > 0.9


@pytest.mark.parametrize("system", [listed(system) for system in SYSTEMS])
def test_the_target_goes_down_and_the_rest_stays_as_the_exam_says(system: str) -> None:
    record, (target, kept) = recorded(system), asked()
    chosen = settings(record, system)
    method = catalog.load(system).from_plain(chosen)
    patch: Patch = method(model(), request(model(), "star"), seed=record["seed"])
    with torch.no_grad(), patch.applied(model()):
        left, held = shown(target), shown(kept)
    assert left <= share(record, "target") + CHANCE, f"{left:.0%} of the target's pictures show it"
    if chosen == record["parameters"]:  # with half of the steps DoCo, for one, leaves less than with all
        assert left >= share(record, "target") - CHANCE, f"{left:.0%} of the target's pictures show it"
    if share(record, "target") <= 0.25:
        assert left < 0.6
    # What is kept here are other words than the exam's neighbours. Where a system harms some of those, it is its own
    # matter which; where it holds them all, it must hold these.
    if share(record, "neighbour") >= 0.9:
        assert held > 0.6, f"{held:.0%} of what is kept is shown"
