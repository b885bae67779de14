"""`palimpsest unlearn` from data and words to a patch and a deletion record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest import run
from palimpsest.cli import main
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.data.forget import ForgetRequest
from palimpsest.tiny.classifiers import keep
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
