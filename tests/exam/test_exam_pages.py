"""The pages of systems are those of the committed results, and say what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exam_fixtures import case, put, rows, write

from palimpsest.core import catalog
from palimpsest.exam import pages, record
from palimpsest.exam.case import Exam, exams, verbs
from palimpsest.exam.verbs import erase

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "exam" / "results"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return pages.every(RESULTS)


def test_the_committed_pages_are_those_of_the_committed_results(texts: dict[str, str]) -> None:
    docs = ROOT / "docs" / "systems"
    assert {str(p.relative_to(docs)) for p in docs.rglob("*.md")} == set(texts), "run `palimpsest exam table`"
    for name, text in texts.items():
        assert (docs / name).read_text(encoding="utf-8") == text, f"{name}: run `palimpsest exam table`"


def test_every_system_of_an_examined_verb_has_a_page_with_its_measured_numbers(texts: dict[str, str]) -> None:
    for exam in verbs():
        of_verb = [i for i in catalog.entries() if i.startswith(exam.name + "/")]
        assert {f"{system}.md" for system in of_verb} <= set(texts)
        for system in of_verb:
            assert f"[`{system}`]({system.split('/')[1]}.md)" in texts[f"{exam.name}/index.md"]
    uce = erase.summaries(RESULTS)["erase/uce"]["star"]
    assert f"| star | {100 * uce.target.value:.1f} % (" in texts["erase/uce.md"]
    assert "minimise over W'" in texts["erase/uce.md"], "the formula of its docstring"
    assert "**Differs from the paper.** " in texts["erase/uce.md"]
    assert "| `ridge` | `float` | `0.5` | of the distance to the old weights" in texts["erase/uce.md"]
    assert "`steps=150`" in texts["erase/esd.md"], "its budget"


def test_a_system_without_all_results_claims_nothing(tmp_path: Path) -> None:
    groups = [{"role": "target", "concept": "star", "judge": "j", "before": "1111", "first": "0000", "second": "1111",
               "composed": "0001", "first then second": "0000"}]  # fmt: skip
    pair = {"pair": {"first": "star"}, "seed": 0, "groups": groups, "refused": {"second then first": "it | cannot"}}
    write(tmp_path / "erase" / "uce.json", {"cases": [case("star", 0, "0000")], "interactions": [pair]})
    text = pages.every(tmp_path)["erase/index.md"]
    assert "**not measured** | 1 of 12 runs done" in rows([text], "[`erase/uce`]")
    assert "| 0 % / 0 %; +0 | 100 % / 0 %; +0 | 25 % / 0 %; +0 | 0 % / 0 %; +0 | it \\| cannot |" in text
    assert "1 of 12 runs done" in pages.every(tmp_path)["erase/uce.md"]


def test_pages_of_systems_that_are_gone_are_removed(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    write(docs / "erase" / "gone.md", {})
    written = pages.write(tmp_path / "results", docs)
    assert not (docs / "erase" / "gone.md").exists()
    assert docs / "erase" / "uce.md" in written


def test_verdicts_of_studies_reach_the_page(tmp_path: Path) -> None:
    assert "not measured" in rows([pages.every(tmp_path)["erase/index.md"]], "[`erase/homoglyphs`]")
    put(tmp_path, "letters", untouched={"read": "0" * 20, "new": "0" * 20, "plain": "1" * 20},
        erase__homoglyphs={"read": "1" * 20, "new": "1" * 20, "plain": "1" * 20})  # fmt: skip
    text = pages.every(tmp_path)["erase/index.md"]
    assert "**holds**" in rows([text], "[`erase/homoglyphs`]")
    assert "| Homoglyph unlearning `erase/homoglyphs` | 100.0 %" in text
    assert "| *untouched* | 0.0 %" in text


@pytest.mark.parametrize("exam", exams().values(), ids=lambda e: e.name)
def test_committed_records_are_of_installed_systems_and_of_the_present_work(exam: Exam) -> None:
    known = record.read(RESULTS, exam)
    assert known, "an exam that was never run"
    runs = {(s, json.dumps(c, sort_keys=True) if exam.label else "", seed) for s, c, seed in exam.work()}
    for system, records in known.items():
        for r in records:
            of = json.dumps(r[exam.label], sort_keys=True) if exam.label else ""
            assert (system, of, r["seed"]) in runs
