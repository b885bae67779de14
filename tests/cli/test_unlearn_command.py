"""`palimpsest unlearn` from data and words to a patch and a deletion record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest import run
from palimpsest.cli import main
from palimpsest.cli.verb import Classifier
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.data.forget import ForgetRequest
from palimpsest.tiny.classifiers import keep
from palimpsest.tiny.resnet import resnet
from unlearn_fixtures import TASK, base

QUICK = ["--method", "random_label", "--steps", "3", "--batch", "16"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(keep(base().root, TASK, tmp_path / "digits"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    images = TASK.train.samples.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "digits.npz", images=images, labels=TASK.train.samples.labels.numpy())
    return str(tmp_path / "digits.npz")


def test_a_patch_and_a_record(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "without 3"
    assert main(["unlearn", "--model", model, "--data", data, "--forget", "class:3", "--out", str(out), *QUICK]) == 0
    threes = int((TASK.train.samples.labels == 3).sum())
    assert f"{threes} of 1000 samples forgotten" in capsys.readouterr().out
    patch = Patch.load(out / "patch.safetensors")
    record = json.loads((out / "forget.json").read_text())
    host = run.load(model)
    assert (record["samples"], record["items"], record["base"]) == (threes, ["3"], host.fingerprint())
    assert record["patch"] == patch.sha256()
    assert record["parameters"]["steps"] == 3
    assert "--forget class:3" in record["command"]
    images = TASK.train.samples.pixels(slice(0, 8))
    before = host.logits(images)  # type: ignore[attr-defined]
    with patch.applied(host):
        assert not torch.equal(host.logits(images), before)  # type: ignore[attr-defined]
    asked = json.dumps({"kind": "class", "items": ["3"]}, sort_keys=True)
    assert record["request"] == hashlib.sha256(asked.encode()).hexdigest()


def test_the_default_method_is_named(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("index\n0\n7\n")
    forget = f"samples:{tmp_path / 'list.csv'}"
    args = ["--model", model, "--data", data, "--forget", forget, "--out", str(tmp_path / "o")]
    assert main(["unlearn", *args, "--steps", "2"]) == 0
    assert f"using SalUn ({'unlearn/' + catalog.verbs()['unlearn'].default})" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "forget.json").read_text())["items"] == 2  # names stay with their owner


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--unlearner.steps", "2"], ("unlearn/finetune", 2)),
        (["--unlearner", "random-label", "--unlearner.steps", "3", "--sparsity", "0.1"], ("unlearn/random_label", 3)),
    ],
)
def test_a_parameter_may_be_a_system(
    model: str, data: str, tmp_path: Path, options: list[str], expected: tuple[str, int]
) -> None:
    asked = ["unlearn", "--model", model, "--data", data, "--forget", "class:3", "--out", str(tmp_path / "out")]
    assert main([*asked, "--method", "prune_first", *options]) == 0
    record = json.loads((tmp_path / "out" / "forget.json").read_text())
    inner = record["parameters"]["unlearner"]
    assert (inner["method"], inner["parameters"]["steps"]) == expected


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ("class:11", "no class '11'"),
        ("class:" + ",".join(map(str, range(10))), "would forget all 1000 samples"),
        ("identity:s1", "do not say whom"),
        ("3", "is no forget request"),
        ("samples:none.csv", "cannot be read"),
    ],
)
def test_senseless_requests_write_nothing(
    forget: str, words: str, model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", model, "--data", data, "--forget", forget, "--out", str(tmp_path / "out"), *QUICK]
    assert main(["unlearn", *args]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_of_other_classes_are_refused(model: str) -> None:
    other = TASK.train
    renamed = type(other)(samples=other.samples, classes=tuple("abcdefghij"))
    host = run.load(model)
    theirs = type(host)(host.root, name="m", labels=tuple("qrstuvwxyz"), head="head")  # type: ignore[call-arg]
    with pytest.raises(BadRequest, match="class 'a' is none of the 10 classes"):
        run.unlearn(theirs, ForgetRequest.parse("class:a"), data=renamed)


def folders(root: Path, side: int) -> str:
    """60 training digits as PNG files, resized."""
    for i in range(60):
        picture = Image.fromarray(TASK.train.samples.images[i].permute(1, 2, 0).numpy()).resize((side, side), 0)
        folder = root / str(int(TASK.train.samples.labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
    return str(root)


def test_pictures_are_read_at_the_models_own_size(model: str, tmp_path: Path) -> None:
    config = json.loads((Path(model) / "config.json").read_text())
    (Path(model) / "config.json").write_text(json.dumps({**config, "preprocessing": {"size": [16, 16]}}))
    reading = Classifier(model=model, data=folders(tmp_path / "large", 48))
    host, data, _ = reading.samples(reading, model, reading.data)
    assert data.samples.images.shape[2:] == (16, 16)
    right = host.logits(data.samples.pixels()).argmax(1) == data.samples.labels
    assert right.float().mean() > 0.75  # a fresh small model; chance is 0.1


def test_a_model_that_reads_its_data_at_chance_is_left_alone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    fresh = resnet(classes=10, width=8)
    folder = str(keep(fresh, TASK, tmp_path / "fresh"))
    args = ["unlearn", "--model", folder, "--data", data, "--forget", "class:3", "--out", str(tmp_path / "o"), *QUICK]
    assert main(args) == 2
    said = capsys.readouterr().err
    assert "chance is 10 %" in said
    assert "16 x 16 pixels" in said
    assert "--size" in said
    assert not (tmp_path / "o").exists()
    audit = ["audit", "--before", folder, "--after", folder, "--data", data, "--forget", "class:3"]
    assert main([*audit, "--out", str(tmp_path / "a")]) == 2
    assert not (tmp_path / "a").exists()
    assert main([*args, "--accept-chance", "--dry-run"]) == 0


def test_plans_of_classifiers_write_nothing(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ["--data", data, "--forget", "class:3", "--out", str(tmp_path / "o")]
    audit = ["audit", "--before", model, "--after", model, *about]
    for args in ([*audit, "--plan"], [*audit, "--dry-run"], ["unlearn", "--model", model, *about, *QUICK, "--dry-run"]):
        assert main(args) == 0
        said = capsys.readouterr().out
        assert "to forget" in said
        assert "samples right" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "option",
    ["--prompts=3", "--seeds=2", "--sample-steps=2", "--guidance=1", "--judge=x", "--sees=2", "--stop-early",
     "--keep=4", "--kind=style", "--resume", "--resurfacing", "--features=x", "--reference=r", "--at-once=2"],
)  # fmt: skip
def test_no_option_of_an_audit_is_ignored(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    audit = ["audit", "--before", "m", "--after", "n"]
    assert main([*audit, "--data", "d", "--forget", "class:3", option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    for other in ("--data=d", "--test=t", "--size=8", "--split=x", "--skip-unreadable", "--forget=class:3"):
        assert main([*audit, "--concept", "star", other]) == 2
        assert other.partition("=")[0] in capsys.readouterr().err
