"""A verb of another package: its declaration, one system, one subject and one exam, and no other file is touched."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from palimpsest.cli import commands, main
from palimpsest.core import catalog
from palimpsest.tiny.classifiers import digits, keep
from palimpsest.tiny.resnet import resnet

SITE = Path(__file__).parent / "made_up"


def forget() -> None:
    from palimpsest.exam import case
    from palimpsest.receipt import subject

    for cached in (catalog.entries, catalog.verbs, catalog._tree, commands, case.exams, subject._foreign):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(SITE)
    forget()
    yield
    forget()
    for name in [n for n in sys.modules if n.split(".")[0].startswith("smudging")]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(keep(resnet(classes=10, width=8), digits(), tmp_path / "digits"))


def test_it_runs_and_its_receipt_is_verified_and_compared(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["smudge", "everything", "--model", model]
    assert main([*args, "--out", str(tmp_path / "o"), "--dry-run"]) == 0
    assert not (tmp_path / "o").exists()
    for name, strength in (("a", "0.5"), ("b", "2.0")):
        out = tmp_path / name
        assert main([*args, "--strength", strength, "--out", str(out)]) == 0
        capsys.readouterr()
        receipt = json.loads((out / "receipt.json").read_text())
        assert (receipt["subject"], receipt["method"]["card"]["name"]) == ("smudges", "Blot")
        assert main(["verify", str(out / "receipt.json"), "--remeasure", "all"]) == 0, capsys.readouterr().out
    assert main([*args, "--out", str(tmp_path / "a")]) == 2
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both")]) == 0
    assert "Blot" in (tmp_path / "both" / "compare.html").read_text()


def test_a_receipt_that_was_altered_is_found(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    assert main(["smudge", "everything", "--model", model, "--out", str(out)]) == 0
    text = (out / "receipt.json").read_text()
    (out / "receipt.json").write_text(text.replace('"smudged"', '"shiny"'))
    assert main(["verify", str(out / "receipt.json")]) in (1, 2)


def test_it_is_listed_shown_and_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "smudge"]) == 0
    assert "smudge/blot" in capsys.readouterr().out
    assert main(["show", "smudge/blot"]) == 0
    assert "--strength" in capsys.readouterr().out
    results, docs = str(tmp_path / "results"), str(tmp_path / "docs")
    assert main(["exam", "smudge", "--results", results, "--docs", docs, "--workers", "1"]) == 0
    (record,) = json.loads((tmp_path / "results" / "smudge" / "blot.json").read_text())["cases"]
    assert record["moved"] > 0
    assert "smudge/blot" in "".join(p.read_text() for p in (tmp_path / "docs").rglob("*.md"))


def test_what_it_costs_beside_its_systems() -> None:
    from palimpsest.testing import cost

    files = cost.files_of("smudge")
    assert set(files) == {"declaration", "subject", "exam"}
    assert all(SITE in path.parents for path in files.values())
    assert sum(map(cost.lines_of, files.values())) < 600
    (line,) = [line for line in cost.table() if line.startswith("smudge")]
    assert "1 systems" in line
