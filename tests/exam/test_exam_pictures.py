"""The exam at work on the shipped models, with one sampling step: what is drawn, kept, composed and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.core.concept import Request
from palimpsest.core.patch import Patch
from palimpsest.erase.uce import UCE
from palimpsest.exam import pictures
from palimpsest.exam.pictures import evidence_of, groups_of, host_of
from palimpsest.exam.studies import many, together
from palimpsest.exam.studies.together import PAIR, WAYS
from palimpsest.probes.groups import Group
from palimpsest.probes.plan import Plan
from palimpsest.run import concepts

STAR = ("a red star", "a star on a sky background")


@pytest.fixture(autouse=True)
def kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No picture of a test is kept for the exam; assembled models stay where they are."""
    monkeypatch.setattr(pictures, "_path", lambda plan, model, oracle: tmp_path / f"{model}{oracle}.safetensors")
    for name in ("tiny/sd", "tiny/portraits"):
        monkeypatch.setattr(host_of(name), "defaults", replace(host_of(name).defaults, steps=1))
    yield tmp_path
    host_of.cache_clear()


def small_plan() -> Plan:
    star = concepts(host_of("tiny/sd"), "star")[0]
    groups = (Group(role="target", concept=star, prompts=STAR, seeds=1),)
    return Plan(request=Request(target=(star,)), groups=groups, first_seed=5, steps=1, guidance=2.0)


def test_only_the_edited_model_is_drawn_again(kept_apart: Path) -> None:
    host, plan = host_of("tiny/sd"), small_plan()
    patch = UCE()(host, plan.request)
    first = evidence_of(host, patch, plan, model="tiny/sd")
    assert [p.name for p in kept_apart.rglob("*.safetensors")] == ["sd.safetensors"]
    again = evidence_of(host, patch, plan, model="tiny/sd")
    for evidence in (first, again):
        assert evidence.cost["forwards"]["denoiser"] == 2 * len(STAR), "one guided step a picture, nothing else"
    assert all(torch.equal(first.gallery[k], again.gallery[k]) for k in first.gallery)
    assert not torch.equal(first.gallery["before"], first.gallery["after"])
    untouched = evidence_of(host, Patch(base=host.fingerprint()), plan, model="tiny/sd")
    assert torch.equal(untouched.gallery["before"], untouched.gallery["after"])
    (group,) = groups_of(first)
    assert (group["role"], group["concept"], len(group["after"])) == ("target", "star", 2)


def test_two_erasures_in_every_way() -> None:
    host = host_of("tiny/sd")
    base = host.fingerprint()
    record = together.examine("erase/uce", PAIR, 0, prompts=1)
    assert record["refused"] == {}
    assert [g["concept"] for g in record["groups"] if g["role"] == "target"] == ["star", "watercolour"]
    assert all(set(WAYS) <= set(g) for g in record["groups"])
    assert host.fingerprint() == base
    record = together.examine("erase/sld", PAIR, 0, prompts=1)
    assert set(record["refused"]) == {"composed", "first then second", "second then first"}
    assert all("already guides" in why for why in record["refused"].values())
    assert all({"first", "second"} <= set(g) for g in record["groups"])


def test_one_after_the_other_is_made_on_the_changed_model() -> None:
    host: Any = host_of("tiny/sd")
    ways = dict(together.ways(host, PAIR, 0, UCE))
    made = {way: make() for way, make in ways.items()}
    layer = next(iter(made["first"].deltas))
    shape = host.root.get_parameter(layer).shape
    dense = {way: patch.deltas[layer].dense(shape) for way, patch in made.items()}
    assert torch.allclose(dense["composed"], dense["first"] + dense["second"], atol=1e-6)
    assert not torch.allclose(dense["first then second"], dense["composed"], atol=1e-4)
    assert not torch.allclose(dense["first then second"], dense["second then first"], atol=1e-4)


def test_many_identities_in_one_run() -> None:
    case = {**many.CASE, "counts": (2, 3), "others": 4, "pictures": 6}
    counts = many.examine("erase/uce", case, 0)["counts"]
    assert {n: (len(r["targets"]), len(r["others"])) for n, r in counts.items()} == {"2": (6, 4), "3": (6, 4)}
    assert counts["3"]["cost"]["seconds"] > 0
