"""Every system that needs a classifier, on small classifiers and regressors: the laws of `palimpsest.testing`."""

from __future__ import annotations

import atexit
import copy
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from digits_fixture import REQUEST, classifier, digits, regressor, sample_split
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError, Unsupported
from palimpsest.core.method import Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.load import load
from palimpsest.testing import check_method
from palimpsest.train.scratch import copied, reset
from support_fixture import supported

SYSTEMS = [i for i in catalog.entries() if i.startswith("unlearn/")]
REGRESS = {"unlearn/blindspot", "unlearn/gaussian_amnesiac"}
WITHOUT_RETAIN = {
    f"unlearn/{name}"
    for name in ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "random_label", "scar", "upcore")
}


SUPPORT = supported("unlearn/")
FOREIGN = ("resnet", "vit")


@cache
def folder_of(kind: str) -> Path:
    """A small random classifier of the ten digits as a transformers folder, removed at the end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    labels: Any = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
    torch.manual_seed(0)
    if kind == "vit":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model: Any = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes, **labels))
    else:
        more: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(embedding_size=8, **more, **labels))
    model.save_pretrained(folder)
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.3] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


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


def test_the_table_of_support_names_every_system_on_every_kind_of_classifier() -> None:
    assert set(SUPPORT) == set(SYSTEMS)
    assert all(set(row) == {"factory", *FOREIGN} for row in SUPPORT.values())
    assert all(row["factory"] == "runs" for row in SUPPORT.values()), "test_systems runs all of them there"


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_on_classifiers_of_transformers(system: str, kind: str) -> None:
    host, split, words = load(folder_of(kind)), group_split(), SUPPORT[system][kind]
    if words != "runs":
        with pytest.raises(PalimpsestError) as refusal:
            quick(system)(host, REQUEST, data=split)
        assert str(refusal.value).replace(host.name, "{host}") == words
        return
    patch = quick(system)(host, REQUEST, data=split)  # the laws are those of `test_systems`, which the same lines obey
    with torch.no_grad():
        before = host.logits(split["forget"].pixels())
        with patch.applied(host):
            after = host.logits(split["forget"].pixels())
    assert bool(after.isfinite().all())
    assert not torch.equal(before, after), f"{system} changes no answer about what it forgets"


def test_fresh_weights_of_any_part_are_seeded_and_leave_the_global_generator_alone() -> None:
    """A vision transformer's class token and positions are drawn as its own library draws them."""
    host, other = load(folder_of("vit")), load(folder_of("vit"))
    before, state = host.fingerprint(), torch.random.get_rng_state()
    one, two = copied(host), copied(other)
    reset(one, 1)
    reset(two, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    pairs = list(zip(one.root.state_dict().items(), two.root.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    old = host.root.state_dict()
    assert not torch.equal(one.root.state_dict()["vit.embeddings.cls_token"], old["vit.embeddings.cls_token"])
    assert host.fingerprint() == before
    reset(two, 2)
    assert not all(torch.equal(a, b) for (_, a), b in pairs)


def test_a_model_made_by_hand_with_parameters_of_its_own_is_refused_in_words() -> None:
    host = load(folder_of("vit"))
    made = ClassifierHost(host.root, name="mine", labels=host.labels, head="classifier", backbone="vit")
    with pytest.raises(Unsupported, match=r"mine has a ViTEmbeddings.*load it from a file"):
        reset(copied(made), 0)


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
