"""The small residual network, its training, its folders, and the tasks with their retrain oracles."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from palimpsest import tiny
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.host import Classifier
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.data.forget import ForgetRequest, split
from palimpsest.data.read import Dataset
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.factory import save
from palimpsest.hosts.load import load
from palimpsest.tiny import classifiers, references
from palimpsest.tiny.resnet import resnet, whiten
from palimpsest_models.ship_classifiers import left_in, write_references
from palimpsest_models.train_classifier import accuracy, logits, train
from unlearn_fixtures import TASK, base, digit_split, oracle

ARGUMENTS = {"classes": 10, "width": 8}
PARTS = {"train": TASK.train, "test": TASK.test}
QUICK = classifiers.Recipe(epochs=2, batch=32, lr=3e-3, width=8, shift=1)


def few(n: int = 96) -> Pictures:
    return TASK.train.samples[:n]


def folder_of(model: torch.nn.Module, folder: Path, factory: str = "palimpsest.tiny.resnet:resnet") -> Path:
    labels = [f"c{i}" for i in range(10)]
    return save(model, folder, factory=factory, arguments=ARGUMENTS, labels=labels, head="head", backbone="backbone")


# -- the network and its training ------------------------------------------------------------------------


def test_the_stem_whitens() -> None:
    model = resnet(10, 8)
    noise = torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = noise * torch.tensor([0.5, 1.0, 0.2]).view(3, 1, 1)
    whiten(model, images)
    seen = model.backbone.stem(images).permute(1, 0, 2, 3).flatten(1)[:12]
    assert torch.allclose(torch.cov(seen).diag(), torch.ones(12), atol=0.2)
    assert (torch.cov(seen) - torch.cov(seen).diag().diag()).abs().max() < 0.02
    assert seen.mean(1).abs().max() < 0.01


def test_the_network_has_the_shapes_it_says() -> None:
    model = resnet(7)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(8e5, rel=0.02)
    for side in (16, 32, 64):
        assert model.eval()(torch.zeros(2, 3, side, side)).shape == (2, 7)
    assert model.backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_training_is_repeatable_and_its_seed_matters() -> None:
    first, again, other = (fingerprint(train(few(), 10, QUICK, seed=s)) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = train(few(), 10, QUICK, seed=0)
    file = tmp_path / "run.safetensors"

    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(few(), 10, QUICK, seed=0, checkpoint=file, tell=stop)
    assert file.is_file()
    told: list[str] = []
    resumed = train(few(), 10, QUICK, seed=0, checkpoint=file, tell=told.append)
    assert len(told) == 1
    assert fingerprint(resumed) == fingerprint(whole)
    exact = train(few(), 10, QUICK, seed=0, precision=torch.float32)
    assert fingerprint(exact) != fingerprint(whole)
    file.unlink()
    with pytest.raises(Stop):
        train(few(), 10, QUICK, seed=0, precision=torch.float32, checkpoint=file, tell=stop)
    assert fingerprint(train(few(), 10, QUICK, seed=0, checkpoint=file)) == fingerprint(exact)  # in what it began in
    other = train(few(), 10, replace(QUICK, lr=1e-3), seed=0, checkpoint=file)  # another run's checkpoint is no start
    assert fingerprint(other) == fingerprint(train(few(), 10, replace(QUICK, lr=1e-3), seed=0))


def test_digits_are_learnt_and_the_oracle_never_saw_its_class() -> None:
    gone = TASK.test.samples.labels == 3
    kept = TASK.test.samples[~gone]
    for host in (base(), oracle()):
        assert accuracy(logits(host.root, kept), kept.labels) > 93
    assert accuracy(logits(base().root, TASK.test.samples[gone]), TASK.test.samples.labels[gone]) > 85
    assert accuracy(logits(oracle().root, digit_split()["forget"]), digit_split()["forget"].labels) == 0


# -- folders and states ----------------------------------------------------------------------------------


def test_a_folder_of_ours_loads_and_takes_patches(tmp_path: Path) -> None:
    host = load(folder_of(resnet(10, 8), tmp_path / "m"))
    assert isinstance(host, ClassifierHost)
    assert isinstance(host, Classifier)
    assert host.labels[3] == "c3"
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert host.embed(images).shape == (2, 32)
    features = host.root.get_submodule("backbone")(images)
    assert torch.allclose(host.embed(images), features)
    patch = Patch(base=host.fingerprint())
    with patch.applied(host):
        assert host.logits(images).shape == (2, 10)


def test_foreign_code_runs_only_when_the_user_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = types.ModuleType("my_models")
    foreign.small = resnet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", foreign)
    folder = folder_of(resnet(10, 8), tmp_path / "m", factory="my_models:small")
    with pytest.raises(Damaged, match=r"not one of the architectures .* --factory"):
        load(folder)
    with pytest.raises(Damaged, match="not one of the architectures"):
        load(folder, factory="my_models:other")
    assert load(folder, factory="my_models:small").name == str(folder)


def test_a_state_with_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = types.ModuleType("my_models")
    foreign.small = lambda: resnet(4, 8)  # type: ignore[attr-defined]
    foreign.bare = lambda: torch.nn.Conv2d(3, 4, 3)  # type: ignore[attr-defined]
    foreign.text = lambda: "a model"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", foreign)
    state = tmp_path / "state.safetensors"
    save_file({key: value.contiguous() for key, value in resnet(4, 8).state_dict().items()}, str(state))
    host = load(state, factory="my_models:small")
    assert isinstance(host, ClassifierHost)
    assert host.labels == ("0", "1", "2", "3")
    assert list(host.parts("head")) == ["head"]
    named = load(state, factory="my_models:small", labels=("a", "b", "c", "d"))
    assert isinstance(named, ClassifierHost)
    assert named.labels == ("a", "b", "c", "d")
    with pytest.raises(BadRequest, match="4 logits and 2 labels"):
        load(state, factory="my_models:small", labels=("a", "b"))
    with pytest.raises(BadRequest, match="cannot be found"):
        load(state, factory="my_models:none")
    with pytest.raises(BadRequest, match="write module:function"):
        load(state, factory="my_models")
    with pytest.raises(BadRequest, match="returned a str"):
        load(state, factory="my_models:text")
    with pytest.raises(Damaged, match=r"does not fit .* tensors differ"):
        load(state, factory="my_models:bare")


def test_broken_folders_are_told(tmp_path: Path) -> None:
    folder = folder_of(resnet(10, 8), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "arguments": {"classes": 9, "width": 8}}))
    with pytest.raises(Damaged, match=r"2 tensors differ, first 'head\.weight'"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({"factory": config["factory"]}))
    with pytest.raises(Damaged, match="'arguments' is missing"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(Damaged, match="pickle"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Damaged, match="has no weights"):
        load(folder)


def test_a_timm_folder_loads_through_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm itself is no dependency; what is asked of it is one function."""
    folder = folder_of(resnet(10, 8), tmp_path / "m")
    cfg = {"input_size": [3, 32, 32], "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.25] * 3, "classifier": "head"}
    named = {"architecture": "small", "num_classes": 10, "pretrained_cfg": cfg | {"interpolation": "bicubic"}}
    (folder / "config.json").write_text(json.dumps(named))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unsupported, match="pip install timm"):
        load(folder)
    stand_in = types.ModuleType("timm")
    stand_in.__version__ = "1"  # type: ignore[attr-defined]
    stand_in.create_model = lambda name, pretrained, num_classes: resnet(num_classes, 8)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    host = load(folder)
    assert isinstance(host, ClassifierHost)
    assert (host.preprocessing.size, host.preprocessing.crop, host.preprocessing.mode) == (36, (32, 32), "bicubic")
    assert host.preprocessing.std == (0.25,) * 3
    assert host.logits(torch.rand(1, 3, 50, 40)).shape == (1, 10)
    for elsewhere in ("hf-hub:someone/model", "local-dir:/tmp/model", "../model", 7):
        (folder / "config.json").write_text(json.dumps({**named, "architecture": elsewhere}))
        with pytest.raises(Damaged, match=r"the name of a timm model|expected text"):
            load(folder)


# -- tasks -----------------------------------------------------------------------------------------------


def test_models_of_a_task_are_kept_and_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    data = Dataset(samples=few(), classes=TASK.train.classes)
    task = replace(TASK, train=data, recipe=QUICK, shipped="")
    first = classifiers.model(task)
    assert classifiers.model(task).fingerprint() == first.fingerprint()
    (only,) = (tmp_path / "tiny" / "classifiers").iterdir()
    made = (only / "model.safetensors").stat().st_mtime_ns
    classifiers.model(task)
    assert (only / "model.safetensors").stat().st_mtime_ns == made
    without = ForgetRequest(kind="class", items=("3",))
    for other in (classifiers.model(task, seed=1), classifiers.model(task, without=without)):
        assert other.fingerprint() != first.fingerprint()
    assert len(list((tmp_path / "tiny" / "classifiers").iterdir())) == 3


def test_a_shipped_model_is_taken_for_its_own_task_alone() -> None:
    assert classifiers.model(TASK).folder == tiny.path("digits")
    for other in (replace(TASK, recipe=QUICK), replace(TASK, train=TASK.test)):
        assert classifiers.digest(other) != classifiers.digest(TASK)


def test_references_are_named_by_what_their_models_never_saw() -> None:
    assert [references.without(TASK, i) for i in (0, 1)] == ["class:3", "random:0.1"]
    known = references.load(tiny.path("digits"))
    assert {(r.without, r.seed) for r in known} == {(w, s) for w in ("", "class:3", "random:0.1") for s in (0, 1, 2)}
    assert all(r.accuracy["forget"] == 0 for r in known if r.without == "class:3")


def test_faces_have_identities_across_classes() -> None:
    task = classifiers.faces(people=10, views=6)
    assert (len(task.train.samples), len(task.test.samples)) == (40, 20)
    assert set(task.train.samples.columns["identity"]) == set(task.test.samples.columns["identity"])
    gone = split(task.train, task.forget[0])
    assert len(set(gone["forget"].columns["identity"])) == 5
    assert len(gone["forget"]) == 20
    assert len(gone["forget"].labels.unique()) > 1


def test_a_part_is_held_out_of_every_class() -> None:
    learnt, other = classifiers.held_out(TASK.train, 0.3)
    assert len(learnt.samples) + len(other.samples) == 1000
    shares = torch.bincount(other.samples.labels) / torch.bincount(TASK.train.samples.labels)
    assert (shares - 0.3).abs().max() < 0.01
    assert not set(learnt.samples.names) & set(other.samples.names)


def test_real_data_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    with pytest.raises(BadRequest, match="Set PALIMPSEST_DATA"):
        classifiers.data_folder()


def test_references_answer_as_their_models_do(tmp_path: Path) -> None:
    hosts, folders = (base(), oracle()), []
    for number, host in enumerate(hosts):
        folder = classifiers.keep(host.root, TASK, tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text())
        config["about"] = {"without": "class:3" if number else "", "seed": 0, "accuracy": {"test": 96.0}}
        (folder / "config.json").write_text(json.dumps(config))
        scores = {part: logits(host.root, data.samples).half() for part, data in PARTS.items()}
        save_file(scores, str(folder / "logits.safetensors"))
        folders.append(folder)
    write_references([left_in(folder) for folder in folders], TASK, tmp_path)
    rows = references.rows(TASK)
    assert set(rows) == {"test", "forget 0", "forget 1", "retain"}
    assert set(TASK.train.samples.labels[rows["forget 0"]].tolist()) == {3}
    assert not set(rows["retain"].tolist()) & {*rows["forget 0"].tolist(), *rows["forget 1"].tolist()}
    read = references.load(tmp_path)
    assert [(r.without, r.accuracy["test"]) for r in read] == [("", 96.0), ("class:3", 96.0)]
    assert set(read[0].logits) == set(rows)
    assert set(read[1].logits) == set(rows) - {"forget 1"}, "an oracle is no judge of what another one forgets"
    for host, reference in zip(hosts, read, strict=True):
        for part in reference.logits:
            index = rows[part]
            data = PARTS["test" if part == "test" else "train"]
            want = logits(host.root, data.samples[index])
            want = want - want.mean(1, keepdim=True)
            assert (reference.logits[part] - want).abs().max() < want.abs().max() / 100
    with pytest.raises(Damaged, match=r"no readable references\.safetensors"):
        references.load(tmp_path / "none")


@pytest.mark.data
def test_people_of_orl_are_recognised() -> None:
    try:
        classifiers.data_folder()
    except BadRequest as e:
        pytest.skip(str(e))
    task = classifiers.orl()
    assert (len(task.train.samples), len(task.test.samples), len(task.train.classes)) == (280, 120, 40)
    assert set(task.train.samples.columns["identity"]) == set(task.train.classes)
    model = train(task.train.samples, 40, replace(task.recipe, epochs=8), seed=0)
    assert accuracy(logits(model, task.test.samples), task.test.samples.labels) > 60


@pytest.mark.skipif("cifar" not in tiny.names(), reason="the tiny classifier is not installed")
def test_the_shipped_classifier_loads() -> None:
    host = load("tiny/cifar")
    assert isinstance(host, ClassifierHost)
    assert host.labels[3:6] == ("cat", "deer", "dog")
    assert host.logits(torch.rand(2, 3, 32, 32)).shape == (2, 10)
