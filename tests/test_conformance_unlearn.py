"""Every system that needs a classifier, on small classifiers and regressors: the laws of `palimpsest.testing`."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from digits_fixture import REQUEST, classifier, digits, regressor, sample_split
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.testing import check_method

QUICK: dict[str, Any] = {
    "steps": 2,
    "batch": 32,
    "epochs": 1,
    "vae_steps": 3,
    "foreign": 40,
    "look": 100,
    "centroids": 200,
    "reference": 200,
    "trees": 5,
    "blind_epochs": 0.1,
    "select": 2.0,
    "slices": 3,
}
INNER = {"unlearn/prune_first": "steps=2 batch=32", "unlearn/upcore": "steps=2 batch=32"}
SYSTEMS = [i for i in catalog.entries() if i.startswith("unlearn/")]
REGRESS = {"unlearn/blindspot", "unlearn/gaussian_amnesiac"}
WITHOUT_RETAIN = {
    f"unlearn/{name}"
    for name in ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "random_label", "scar", "upcore")
}


def quick(system: str) -> ModelEdit:
    """The system with as little work as shows its laws."""
    cls: Any = catalog.load(system)
    chosen = {f.name: QUICK[f.name] for f in fields(cls) if f.name in QUICK}
    return cls(**chosen, **({"settings": INNER[system]} if system in INNER else {}))


def group_split() -> Material:
    """One made-up identity is forgotten."""
    train = digits()[0]
    chosen = torch.tensor([g == "hand7" for g in train.columns["identity"]])
    return Material({"forget": train[chosen], "retain": train[~chosen]})


def task(system: str) -> tuple[Any, Material]:
    return regressor() if system in REGRESS else (classifier(), group_split())


@pytest.mark.parametrize("system", SYSTEMS)
def test_systems(system: str) -> None:
    host, split = task(system)
    patch = check_method(quick(system), host, REQUEST, data=split)
    pixels = split["forget"].pixels()
    with torch.no_grad():
        before = host.logits(pixels)
        with patch.applied(host):
            after = host.logits(pixels)
    assert bool(after.isfinite().all())
    assert not torch.equal(before, after), f"{system} changes no answer about what it forgets"
    assert catalog.load(system)(**patch.provenance["parameters"]) == quick(system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_half_precision(system: str) -> None:
    host, split = task(system)
    host = copy.deepcopy(host)
    host.root.to(torch.bfloat16)
    patch = quick(system)(host, REQUEST, data=split)
    with patch.applied(host), torch.no_grad():
        assert bool(host.logits(split["forget"].pixels()).isfinite().all())


@pytest.mark.parametrize("system", SYSTEMS)
def test_data_that_makes_no_sense_is_refused_in_words(system: str) -> None:
    host, split = task(system)
    with pytest.raises(BadRequest, match="needs data called 'forget'"):
        quick(system)(host, REQUEST)
    other = classifier() if system in REGRESS else regressor()[0]
    with pytest.raises(BadRequest, match=r"outputs and labels|out of range"):
        quick(system)(other, REQUEST, data=split)
    if system not in REGRESS:
        wild = replace(split["forget"], labels=split["forget"].labels + 7)
        with pytest.raises(BadRequest, match="out of range"):
            quick(system)(host, REQUEST, data=Material({**split, "forget": wild}))
    everything = Material({"forget": split["forget"], "retain": split["retain"][:0]})
    if system in WITHOUT_RETAIN:
        assert isinstance(quick(system)(host, REQUEST, data=everything), Patch)
    else:
        with pytest.raises(BadRequest, match="Every sample is to be forgotten"):
            quick(system)(host, REQUEST, data=everything)


@pytest.mark.parametrize("system", SYSTEMS)
def test_patches_hold_no_statistics_but_where_weights_are_new(system: str) -> None:
    host, split = task(system)
    buffers = {name for name, _ in host.root.named_buffers()}
    touched = buffers & set(quick(system)(host, REQUEST, data=split).deltas)
    assert bool(touched) == (system in {"unlearn/retrain", "unlearn/prune_first"})


def test_draws_do_not_come_from_the_global_generator() -> None:
    host, split = classifier(), sample_split()
    state = torch.random.get_rng_state()
    quick("unlearn/retrain")(host, REQUEST, data=split)
    quick("unlearn/laf")(host, REQUEST, data=split)
    assert torch.equal(state, torch.random.get_rng_state())
