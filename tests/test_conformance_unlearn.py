"""Every system that needs a classifier, on small classifiers and regressors: the laws of `palimpsest.testing`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from digits_fixture import REQUEST, classifier, digits, regressor, sample_split
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.method import Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.testing import check_method

SYSTEMS = [i for i in catalog.entries() if i.startswith("unlearn/")]
REGRESS = {"unlearn/blindspot", "unlearn/gaussian_amnesiac"}
WITHOUT_RETAIN = {
    f"unlearn/{name}"
    for name in ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "random_label", "scar", "upcore")
}


def quick(system: str) -> Any:
    """The system with as little work as shows its laws."""
    cls: Any = catalog.load(system)
    return cls(**cls.quick)


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
    assert catalog.load(system).from_plain(patch.provenance["parameters"]) == quick(system)


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


TRAINED = [i for i in SYSTEMS if i != "unlearn/ssd"]


@pytest.mark.parametrize("system", TRAINED)
def test_interrupted_runs_go_on_where_they_were(system: str, tmp_path: Path) -> None:
    host, split = task(system)

    def stop(what: str, done: int, total: int) -> None:
        if what == "training":
            raise KeyboardInterrupt

    unbroken = quick(system)(host, REQUEST, data=split, seed=1)
    with pytest.raises(KeyboardInterrupt):
        quick(system)(host, REQUEST, data=split, seed=1, trace=Trace(folder=tmp_path, progress=stop))
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    told: list[int] = []
    again = Trace(folder=tmp_path, resume=True, progress=lambda what, done, total: told.append(done))
    patch = quick(system)(host, REQUEST, data=split, seed=1, trace=again)
    assert told[0] == 2, "the first step was taken twice"
    assert patch.deltas.keys() == unbroken.deltas.keys()
    for name, delta in patch.deltas.items():
        for key, value in delta.tensors().items():
            assert torch.equal(value, unbroken.deltas[name].tensors()[key]), name


@pytest.mark.parametrize("system", TRAINED)
def test_budgets_follow_from_the_data(system: str) -> None:
    """Defaults are epochs: ten times the data are ten times the steps, and what a run takes is told before it."""
    cls: Any = catalog.load(system)
    _, split = task(system)
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)

    def many(n: int) -> Material:
        one = Pictures(images=images.expand(n, -1, -1, -1), labels=torch.zeros(n, dtype=torch.int64), names=("",) * n)
        return Material({"forget": one, "retain": one})

    few, more = (cls().planned(many(n)) for n in (5120, 51200))
    assert 0.9 < more.steps / few.steps / 10 < 1.1
    assert 0.9 < more.samples / few.samples / 10 < 1.1
    steps: list[int] = []
    trace = Trace(progress=lambda what, done, total: steps.append(total) if what == "training" else None)
    method = quick(system)
    method(*task(system)[:1], REQUEST, data=split, trace=trace)
    if system != "unlearn/s3t":  # it leaves slices out
        assert set(steps) == {method.planned(split).steps}


def test_steps_override_epochs() -> None:
    _, split = task("unlearn/finetune")
    cls: Any = catalog.load("unlearn/finetune")
    n = len(split["retain"])
    assert cls(epochs=2.0, batch=100).planned(split) == Work(steps=round(2 * n / 100), samples=round(2 * n / 100) * 100)
    assert cls(epochs=2.0, batch=100, steps=7).planned(split).steps == 7
    assert cls(epochs=1e-6).planned(split).steps == 1
    for bad in ({"steps": 0}, {"epochs": 0.0}, {"batch": 0}, {"lr": -1.0}):
        with pytest.raises(BadRequest, match=f"{next(iter(bad))} is"):
            cls(**bad)


def test_draws_do_not_come_from_the_global_generator() -> None:
    host, split = classifier(), sample_split()
    state = torch.random.get_rng_state()
    quick("unlearn/retrain")(host, REQUEST, data=split)
    quick("unlearn/laf")(host, REQUEST, data=split)
    assert torch.equal(state, torch.random.get_rng_state())
