"""A subject and a probe of another package: one class each, told, checked, measured again and compared like ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evidence_fixtures import Reader, Scribe, damaging, patch, receipt, request, small_plan
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.receipt import audit, subject
from palimpsest.receipt.compare import compare
from palimpsest.receipt.finding import exit_code
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify

TALLY = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from palimpsest.core.reading import Change, Reading
from palimpsest.ops import statistics
from palimpsest.probes.evidence import Evidence, Probe, unkept
from palimpsest.receipt.subject import Again, Rates, Section, Subject


@dataclass(frozen=True)
class Asked:
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tallied(Evidence):
    subject: ClassVar[str] = "tally"


class Sum(Probe):
    name, makes, subjects, needs = "sum", ("sum",), ("tally",), ("bit",)

    def run(self, evidence):
        before, after = (evidence("row", model, "bit") for model in ("before", "after"))
        change = Change(value=float((after - before).mean()), low=-1.0, high=1.0)
        return [Reading(name="sum", role="target", value=float(after.sum()), n=len(after), change=change)]


@dataclass(frozen=True, kw_only=True)
class Tally(Subject):
    rows: int = 4
    name: ClassVar = "tally"
    counted: ClassVar = "rows"
    probes: ClassVar = (Sum(),)
    sections: ClassVar = (Section(title="Sums", readings=("sum",)),)
    terms: ClassVar = (("Sum", "What it says."),)
    compared: ClassVar = dict.fromkeys("before target neighbours unrelated n y x said".split(), "tallied")

    def _ask(self, before, after, rows):
        bits = {"before": torch.zeros(rows), "after": torch.full((rows,), float(after.weight[0, 0]))}
        return Tallied(plan=Asked(rows), measures={f"row/{m}/bit": b.double() for m, b in bits.items()})

    def collect(self, before, after, request, *, folder, resume, trace):
        return self._ask(before, after, self.rows)

    def again(self, kept, before, after, how, trace):
        return Again(evidence=self._ask(before, after, kept.plan.rows), readings=True)

    @classmethod
    def kept(cls, data, vectors):
        return Tallied(plan=Asked(**data["plan"]), measures=unkept(data["measures"], {}))

    @classmethod
    def words(cls, readings, request, evidence):
        text = f"The sum is {readings[0].value:g}."
        return text, [{"tone": "plain", "text": text}]

    @classmethod
    def figures(cls, readings):
        return []

    @classmethod
    def rates(cls, evidence):
        after = evidence("row", "after", "bit")
        rate = statistics.wilson(int(after.sum()), len(after))
        return Rates(target=rate, before=rate, neighbours=None, unrelated=None, n=len(after))
"""


class Point:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def load(self) -> Any:
        return self.value


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A package that brings a subject."""
    module = ModuleType("their_tally")
    monkeypatch.setitem(sys.modules, "their_tally", module)
    exec(TALLY, module.__dict__)
    points = {"palimpsest.subjects": [Point("tally", module.Tally)]}
    monkeypatch.setattr(subject, "entry_points", lambda group: points.get(group, []))
    subject._foreign.cache_clear()
    yield module.Tally
    subject._foreign.cache_clear()


def edited() -> Scribe:
    host = Scribe("edited")
    patch(host).fuse(host)
    return host


def test_a_subject_of_another_package_has_the_whole_receipt(tally: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        audit(Scribe(), edited(), request("star"), subject=tally(), out=tmp_path / name)
    path = tmp_path / "a" / "receipt.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["subject"], data["headline"], data["plan"]) == ("tally", "The sum is 4.", {"rows": 4})
    page = (tmp_path / "a" / "receipt.html").read_text(encoding="utf-8")
    assert "Sums" in page
    assert '<th scope="col">rows</th>' in page
    for how in ("none", "sample", "all"):
        findings = verify(path, before=Scribe(), after=edited(), remeasure=how)  # type: ignore[arg-type]
        assert exit_code(findings) == 0, [str(f) for f in findings]
    assert exit_code(verify(path, before=Scribe(), after=Scribe("other"), remeasure="all")) == 1
    rows = json.loads(compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")[1].read_text())["sections"][0]["rows"]
    assert [r["target"]["value"] for r in rows] == [100.0, 100.0]


def test_two_subjects_are_not_compared_and_a_missing_one_is_named(
    tally: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(Scribe(), edited(), request("star"), subject=tally(), out=tmp_path / "a")
    receipt(tmp_path / "b")
    with pytest.raises(BadRequest, match="is about a generator"):
        compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    monkeypatch.setattr(subject, "entry_points", lambda group: [])
    with pytest.raises(Damaged, match="no subject 'tally'"):
        verify(tmp_path / "a" / "receipt.json")


def test_a_probe_of_another_package_is_read_told_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.core.reading import Reading
    from palimpsest.probes.drawn import Drawn
    from palimpsest.probes.evidence import Probe

    class Circles(Probe):
        name, makes, subjects, needs = "circles", ("circles",), ("generator",), ("present",)

        def run(self, evidence: Drawn) -> list[Reading]:
            judge = evidence.evaluators["reader"]
            shown = evidence.present("reader", "after", [judge.classes.index("subject:circle")])
            return [Reading(name="circles", value=float(shown.sum()), n=len(shown), evaluator=judge)]

    points = {"palimpsest.probes": [Point("circles", Circles)]}
    monkeypatch.setattr(subject, "entry_points", lambda group: points.get(group, []))
    subject._foreign.cache_clear()
    host = Scribe()
    about = Generator(plan=small_plan(host, prompts=2, seeds=1), judges=[Reader()])
    made = audit(host, damaging(host), request("star"), subject=about, out=tmp_path)
    assert next(r for r in made.readings if r.name == "circles").value > 0
    assert "Further readings" in (tmp_path / "receipt.html").read_text(encoding="utf-8")
    assert exit_code(verify(tmp_path / "receipt.json", before=host, subject=about)) == 0
    points.clear()
    subject._foreign.cache_clear()
    findings = verify(tmp_path / "receipt.json", before=host, subject=about)
    assert exit_code(findings) == 3
    assert any(f.what == "circles" and "no installed probe" in f.detail for f in findings)
