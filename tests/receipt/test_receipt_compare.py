"""Receipts side by side: numbers as the receipts give them, a page that stands alone, refusals in plain words."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence_fixtures import Reader, Scribe, damaging, patch, receipt, request, small_plan
from palimpsest.cli import main
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.exam import plots
from palimpsest.receipt import audit
from palimpsest.receipt.compare import compare
from palimpsest.receipt.compare_page import front, render, scatter
from palimpsest.receipt.subjects.generator import Generator

ROOT = Path(__file__).resolve().parents[2]


def made(folder: Path, name: str, change: Any, **choices: Any) -> Path:
    """The receipt of an edit of one name."""
    host = Scribe()
    edit = replace(change(host), provenance={**patch(host).provenance, "name": name, "seconds": 1.5})
    audit(
        host,
        edit,
        request("star", keep=["moon"]),
        subject=Generator(plan=small_plan(host, **choices), judges=[Reader()]),
        out=folder / name,
    )
    return folder / name


def nothing(host: Scribe) -> Any:
    return replace(patch(host), deltas={"unet.weight": Dense(value=torch.zeros(8, 8))})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("compared")
    return made(root, "Harsh", damaging), made(root, "Idle", nothing), made(root, "Fine", patch)


@pytest.fixture(scope="module")
def written(folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return compare(folders, tmp_path_factory.mktemp("out"))


def test_numbers_are_those_of_the_receipts(folders: tuple[Path, ...], written: tuple[Path, ...]) -> None:
    data = json.loads(written[1].read_text(encoding="utf-8"))
    rows = {r["name"]: r for r in data["sections"][0]["rows"]}
    assert list(rows) == ["Harsh", "Idle", "Fine"]
    for folder in folders:
        kept = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
        stated = next(r for r in kept["readings"] if r["name"] == "presence" and r["role"] == "target")
        mine = rows[folder.name]
        assert mine["target"] == {k: stated[k] for k in ("value", "low", "high")}
        assert mine["before"]["value"] == stated["before"]
        together = next(
            r for r in kept["readings"] if r["name"] == "presence" and r["role"] == "neighbour" and not r["concept"]
        )
        assert mine["neighbours"] == together["change"]
        assert mine["patch_bytes"] == kept["edited"]["bytes"]
    assert rows["Idle"]["neighbours"]["value"] == 0
    assert rows["Harsh"]["neighbours"]["value"] < 0
    table = list(csv.DictReader(written[2].read_text(encoding="utf-8").splitlines()))
    assert [r["name"] for r in table] == list(rows)
    assert float(table[0]["target_value"]) == rows["Harsh"]["target"]["value"]
    assert float(table[0]["seconds"]) == 1.5


def test_the_page_stands_alone_and_shows_the_same_seeds(written: tuple[Path, ...]) -> None:
    text = written[0].read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert len(text) < 3_000_000
    rows = re.findall(r"<tr><th scope=\"row\">[^<]*<span.*?</tr>", text, re.DOTALL)
    assert len(rows) >= 6
    for row in rows:
        sources = re.findall(r'src="([^"]+)"', row)
        assert len(sources) == 4, "untouched and three edits"
        assert len(re.findall('alt="[^"]+seed', row)) == 4
    assert any(len(set(re.findall(r'src="([^"]+)"', row))) > 1 for row in rows)
    assert text.count("<svg") == 2
    assert 'download="compare.csv"' in text


def test_idle_keeps_the_untouched_pictures(written: tuple[Path, ...]) -> None:
    text = written[0].read_text(encoding="utf-8")
    row = re.search(r'<img src="([^"]+)" alt="untouched.*?<img src="([^"]+)" alt="Idle', text, re.DOTALL)
    assert row is not None
    assert row[1] == row[2]


def test_the_front_is_what_nothing_betters() -> None:
    def point(name: str, x: float, y: float) -> dict[str, Any]:
        return {"name": name, "x": (x, x - 1, x + 1), "y": (y, y, y)}

    points = [point("a", 1, 90), point("b", 5, 10), point("c", 6, 11), point("d", 40, 9), point("e", 41, 9)]
    assert front(points) == ["a", "b", "d"]
    assert front([]) == []
    drawn = str(scatter([*points, point("<b>", 0.001, 50)], "seconds", Generator.compared, log=True))
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn
    assert "nan" not in drawn
    assert "Nothing to plot" in scatter([], "seconds", Generator.compared)
    assert scatter([point("alone", 3.0, 50)], "points", Generator.compared, zero=True)


def test_other_prompts_are_told_other_models_and_targets_refused(folders: tuple[Path, ...], tmp_path: Path) -> None:
    fewer = made(tmp_path, "Fewer", patch, prompts=4)
    page, data, _ = compare([folders[0], fewer], tmp_path / "out")
    assert "other prompts, samples, seeds or settings" in page.read_text(encoding="utf-8")
    assert "Fewer" in json.loads(data.read_text(encoding="utf-8"))["notes"][0]
    with pytest.raises(BadRequest, match="two or more"):
        compare([folders[0]], tmp_path / "one")
    kept = json.loads((fewer / "receipt.json").read_text(encoding="utf-8"))
    kept["base"]["fingerprint"] = "f" * 64
    (fewer / "receipt.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(BadRequest, match="another model"):
        compare([folders[0], fewer], tmp_path / "two")
    (fewer / "receipt.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Damaged, match="no receipt"):
        compare([folders[0], fewer], tmp_path / "three")
    assert not (tmp_path / "two").exists()


def test_two_of_one_name_are_told_apart_by_their_folders(folders: tuple[Path, ...], tmp_path: Path) -> None:
    receipt(tmp_path / "first")
    receipt(tmp_path / "second")
    _, data, _ = compare([tmp_path / "first", tmp_path / "second" / "receipt.json"], tmp_path)
    names = [r["name"] for r in json.loads(data.read_text(encoding="utf-8"))["sections"][0]["rows"]]
    assert names == ["TEST (first)", "TEST (second)"]


def test_the_exams_results_make_the_same_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--exam", str(ROOT / "exam" / "results"), "--out", str(tmp_path)]) == 0
    assert "systems.html" in capsys.readouterr().out
    data = json.loads((tmp_path / "systems.json").read_text(encoding="utf-8"))
    assert len(data["sections"]) >= 5
    uce = next(r for r in data["sections"][0]["rows"] if r["name"] == "UCE")
    assert 0 <= uce["target"]["low"] <= uce["target"]["value"] <= uce["target"]["high"] <= 100
    with pytest.raises(BadRequest, match="no results"):
        plots.write(tmp_path / "nowhere", tmp_path)


def test_the_page_of_plots_is_that_of_the_results(tmp_path: Path) -> None:
    for made in plots.write(ROOT / "exam" / "results", tmp_path):
        kept = ROOT / "docs" / "plots" / made.name
        assert kept.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "run `palimpsest exam table`"
        assert kept.stat().st_size < 300_000
    assert 'href="systems.json"' in (tmp_path / "systems.html").read_text(encoding="utf-8")


def test_where_names_would_hide_the_points_numbers_stand_beside_them() -> None:
    rate = {"value": 10.0, "low": 5.0, "high": 20.0}
    row = {"target": rate, "before": rate, "neighbours": rate, "unrelated": None, "forwards": 1, "note": ""}
    row |= {"seconds": 2.0, "peak_bytes": None, "patch_bytes": None, "pictures": 0}

    def page(n: int) -> str:
        rows = [{**row, "name": f"system-{i}"} for i in range(1, n + 1)]
        return render({"notes": [], "sections": [{"title": "all", "rows": rows}]}, [Generator.compared])

    few, many = page(3), page(20)
    assert ">system-3</text>" in few
    assert "Numbers are those of the table" not in few
    assert "</text>" in many
    assert ">system-3</text>" not in many
    assert ">20</text>" in many
    assert "20 system-20</th>" in many
    assert "Numbers are those of the table" in many
