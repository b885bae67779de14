"""A classifier's receipt: what it says, that it can be checked, and that an altered one is found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palimpsest.cli import main
from palimpsest.core.change import diff
from palimpsest.core.errors import BadRequest
from palimpsest.probes.answered import Answered, Asked, collect, parts_of
from palimpsest.receipt import Receipt, audit
from palimpsest.receipt.compare import compare
from palimpsest.receipt.document import seal
from palimpsest.receipt.finding import Finding, exit_code
from palimpsest.receipt.subjects.classifier import Classifier
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.tiny.classifiers import keep
from unlearn_fixtures import FORGET, TASK, base, digit_split, oracle


@lru_cache(maxsize=2)
def evidence(edited: str) -> Answered:
    """Of the model itself ("nothing") or of a retrained one ("retrained"), beside two other retrained ones."""
    parts = parts_of(digit_split(), TASK.test.samples, 10, forget=60, retain=100, tests=400)
    patch = diff(base(), oracle(2) if edited == "retrained" else base())
    return collect(base(), patch, parts, retrained=[oracle(0), oracle(1)], relearn=edited == "retrained")


def value(edited: str, name: str, concept: str) -> float:
    return next(r.value for r in Classifier.readings(evidence(edited)) if (r.name, r.concept) == (name, concept))


def test_readings_tell_a_retrained_model_from_one_that_forgot_nothing() -> None:
    assert value("nothing", "accuracy", "forget set") > 95
    assert value("nothing", "gap to retrained models", "forget set") > 90
    assert value("retrained", "accuracy", "forget set") == 0
    assert value("retrained", "gap to retrained models", "forget set") == 0
    kept = "held-out, kept classes"
    assert abs(value("retrained", "gap to retrained models", kept)) < 3
    assert value("retrained", "divergence of margins", "forget set") < value(
        "nothing", "divergence of margins", "forget set"
    )
    assert value("retrained", "trace in features", "centroids") < value("nothing", "trace in features", "centroids")
    assert value("retrained", "overdone forgetting", "") == 0
    assert 0 < value("retrained", "relearn time", "") <= 25


def test_forgetting_harder_than_retraining_is_told() -> None:
    whole = dict(evidence("retrained").measures)
    for name in ("margin", "entropy", "modified entropy"):
        whole[f"forget/after/{name}"] = whole[f"forget/after/{name}"] - 50
    harsh = Answered(plan=Asked(classes=TASK.train.classes, gone=(3,)), measures=whole)
    found = next(r for r in Classifier.readings(harsh) if r.name == "overdone forgetting")
    assert found.value == 2
    assert "stand out" in " ".join(found.detail["signs"])


def finished(folder: Path, edited: str = "retrained") -> Receipt:
    """The receipt of a model that was retrained ("retrained") or left as it is ("nothing")."""
    patch = diff(base(), oracle(2) if edited == "retrained" else base())
    about = Classifier(data=TASK.train, asked=FORGET, test=TASK.test, retrained=[oracle(0), oracle(1)])
    return audit(base(), patch, FORGET.concepts(), subject=about, out=folder)


def test_a_receipt_checks_out_and_an_altered_one_does_not(tmp_path: Path) -> None:
    receipt = finished(tmp_path)
    assert "forgotten as by retraining" in receipt.data["headline"]
    assert receipt.json is not None
    findings = verify(receipt.json, before=base())
    assert all(f.ok for f in findings), [str(f) for f in findings]
    assert sum(f.status == "same" for f in findings) >= 6
    page = (tmp_path / "receipt.html").read_text()
    assert "Confusion" in page
    assert "<script" not in page
    data = json.loads(receipt.json.read_text())
    data["readings"][0]["value"] += 7
    receipt.json.write_text(json.dumps({**data, "seal": seal(data)}))  # sealed again by who altered it
    wrong = [f.what for f in verify(receipt.json, before=base()) if not f.ok]
    assert any("accuracy" in w for w in wrong)


def test_unlearn_and_audit_write_receipts_that_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(keep(base().root, TASK, tmp_path / "digits"))
    for name, part in (("train", TASK.train.samples), ("test", TASK.test.samples)):
        images = part.images.permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / f"{name}.npz", images=images, labels=part.labels.numpy())
    data = ["--data", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz"), "--forget", "class:3"]
    quick = ["--method", "random_label", "--steps", "3", "--batch", "16"]
    assert main(["unlearn", "--model", model, *data, "--out", str(tmp_path / "a"), *quick]) == 0
    assert "Of held-out samples of kept classes" in capsys.readouterr().out
    patch = str(tmp_path / "a" / "patch.safetensors")
    assert main(["audit", "--before", model, "--after", patch, *data, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    for out in ("a", "b"):
        assert main(["verify", str(tmp_path / out / "receipt.json")]) == 0, capsys.readouterr().out
    again = ["verify", str(tmp_path / "b" / "receipt.json"), "--remeasure", "all"]
    assert main([*again, *data[:4]]) == 0, capsys.readouterr().out
    assert "asked again" in capsys.readouterr().out
    assert main(again) == 3
    assert "give --data" in capsys.readouterr().out
    assert main([*again, *data[2:4]]) == 2
    first, second = (json.loads((tmp_path / out / "receipt.json").read_text()) for out in ("a", "b"))
    assert first["measures"] == second["measures"]
    held = json.loads((tmp_path / "a" / "forget.json").read_text())
    assert first["plan"]["forget"]["content"] == held["content"] == second["plan"]["forget"]["content"]
    assert main(["audit", "--before", model, "--after", patch]) == 2


def test_the_models_are_asked_again_and_forged_answers_are_found(tmp_path: Path) -> None:
    path = finished(tmp_path).json
    assert path is not None
    asked = Classifier(data=TASK.train, test=TASK.test)

    def told(how: Any = "sample", subject: Classifier | None = asked) -> list[Finding]:
        return verify(path, before=base(), remeasure=how, subject=subject)

    for how in ("sample", "all"):
        assert [str(f) for f in told(how) if not f.ok] == []
        assert any("asked again" in f.detail for f in told(how))
    assert exit_code(told("sample")) == 0
    assert exit_code(told("all")) == 3, "nobody gave the retrained models"
    assert exit_code(told("all", replace(asked, retrained=[oracle(0), oracle(1)]))) == 0
    assert any("give --data" in f.detail for f in told(subject=None))
    assert exit_code(told(subject=None)) == 3
    assert any("give --test" in f.detail for f in told(subject=Classifier(data=TASK.train)))
    fewer = Classifier(data=TASK.test, test=TASK.test)
    assert any(f.what == "samples to forget" and not f.ok for f in told(subject=fewer))
    with pytest.raises(BadRequest, match="is about a classifier"):
        verify(path, subject=Generator())
    data = json.loads(path.read_text())
    rows = data["measures"]["forget/before/class"]
    rows[0] = (rows[0] + 1) % 10  # with readings that follow from it, only asking again finds it
    data["measures"]["relearning/after/relearnt"][-1] -= 40
    path.write_text(json.dumps({**data, "seal": seal(data)}))
    wrong = {f.what: f.detail for f in told("all") if not f.ok}
    assert "first row 0" in wrong["forget/before/class"]
    assert "relearning/after/relearnt" in wrong
    assert "relearning/after/relearnt" not in {f.what for f in told("sample") if not f.ok}


def test_two_unlearn_receipts_are_compared(tmp_path: Path) -> None:
    for edited in ("retrained", "nothing"):
        finished(tmp_path / edited, edited)
    page, data, table = compare([tmp_path / "retrained", tmp_path / "nothing"], tmp_path / "out")
    rows = {r["name"]: r for r in json.loads(data.read_text(encoding="utf-8"))["sections"][0]["rows"]}
    gone, kept = (rows[n] for n in rows)
    assert (gone["target"]["value"], gone["before"]["value"]) == (0.0, kept["target"]["value"])
    assert kept["target"]["value"] > 95
    assert kept["neighbours"]["value"] == kept["unrelated"]["value"] == 0
    text = page.read_text(encoding="utf-8")
    assert "forgotten samples still right" in text
    assert "pictures that still show" not in text
    assert table.is_file()
