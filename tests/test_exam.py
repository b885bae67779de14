"""The exam: what is kept, what runs again, how cases are pooled and judged, and that the table is the results'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.exam import claims, interaction, studies, table, work
from palimpsest.exam.interaction import PAIRS, Pair
from palimpsest.exam.paraphrases import reworded, with_paraphrases
from palimpsest.exam.study import by_system
from palimpsest.exam.summary import Summary, read, summarise
from palimpsest.probes.plan import Group, Plan
from palimpsest.worlds.glyphs import GLYPHS

ROOT = Path(__file__).resolve().parent.parent


def case(concept: str, seed: int, target: str, neighbour: str = "1111", oracle: str = "") -> dict[str, Any]:
    """A record of one run: four pictures of the target, four of a neighbour."""
    groups = [
        {"role": "target", "concept": concept, "judge": "j", "before": "1111", "after": target},
        {"role": "neighbour", "concept": "near", "judge": "j", "before": "1111", "after": neighbour},
        {"role": "unrelated", "concept": "far", "judge": "j", "before": "1111", "after": "1111"},
    ]
    if oracle:
        groups[0]["oracle"] = oracle
    return {
        "case": {"host": "h", "concept": concept, "kind": "object", "oracle": "o"},
        "seed": seed,
        "groups": groups,
        "numbers": [{"name": "pixel drift", "role": "unrelated", "value": 5.0, "before": None, "floor": 50.0}],
        "cost": {"seconds": 2.0, "forwards": {"denoiser": 6}, "peak_bytes": 2**20, "patch_bytes": 1, "tensors": 1},
    }


def together(seed: int, composed: str = "0000") -> dict[str, Any]:
    """A record of two erasures: four pictures of the first target."""
    bits = {"before": "1111", "first": "0000", "second": "1111", "composed": composed, "first then second": "0000"}
    group = {"role": "target", "concept": "star", "judge": "j", **bits}
    pair = {"host": "h", "first": "star", "second": "watercolour"}
    return {"pair": pair, "seed": seed, "groups": [group], "refused": {"second then first": "it cannot"}}


def of(**systems: list[dict[str, Any]]) -> dict[str, dict[str, Summary]]:
    found: dict[str, dict[str, Summary]] = {}
    for name, cases in systems.items():
        concepts = ["", *dict.fromkeys(c["case"]["concept"] for c in cases)]
        summaries = {c: summarise(f"erase/{name}", cases, c) for c in concepts}
        found[f"erase/{name}"] = {c: s for c, s in summaries.items() if s is not None}
    return found


def test_cases_are_pooled_over_seeds_and_concepts() -> None:
    cases = [case("star", 0, "0001", oracle="0000"), case("star", 1, "0000"), case("blue", 0, "1111", "0011")]
    one, every = summarise("erase/x", cases, "star"), summarise("erase/x", cases)
    assert one is not None
    assert every is not None
    assert one.target.value == 1 / 8
    assert one.target.low < 1 / 8 < one.target.high
    assert one.oracle is not None
    assert one.oracle.value == 0
    assert every.target.value == 5 / 12
    assert every.neighbours.value == pytest.approx(-2 / 12)
    assert every.unrelated.value == 0
    assert every.drift == pytest.approx(0.1)
    assert (every.seconds, every.forwards, every.runs) == (2.0, 6, 3)
    cases[1]["cost"]["seconds"] = 1.5
    least = summarise("erase/x", cases)
    assert least is not None
    assert least.seconds == 1.5
    assert summarise("erase/x", cases, "moon") is None


def test_refusals_are_kept_apart() -> None:
    refused = {"case": {"concept": "star", "kind": "object"}, "seed": 0, "refused": "it cannot"}
    assert summarise("erase/x", [refused]) is None
    both = summarise("erase/x", [refused, case("star", 1, "0000")])
    assert both is not None
    assert both.refused == "it cannot"
    assert both.runs == 1


def test_claims_are_judged_by_the_numbers() -> None:
    clean, leaky = [case("star", s, "0000") for s in range(3)], [case("star", s, "1110") for s in range(3)]
    harm = [case("star", s, "0000", "0000") for s in range(3)]
    assert claims.judge("erase/uce", of(uce=clean)).verdict == "holds"
    assert claims.judge("erase/uce", of(uce=harm)).verdict == "holds in part"
    assert "neighbours of star" in claims.judge("erase/uce", of(uce=harm)).why
    assert claims.judge("erase/uce", of(uce=[case("star", 0, "1111", "0000")])).verdict == "does not hold here"
    assert claims.judge("erase/rece", of(rece=clean, uce=leaky)).verdict == "holds"
    assert claims.judge("erase/rece", of(rece=leaky, uce=clean)).verdict == "does not hold here"
    assert claims.judge("erase/rece", of(rece=clean)).verdict == "not measured"
    assert claims.judge("erase/sld", of(sld=clean)).verdict == "holds"
    assert claims.judge("erase/sld", of(sld=leaky)).verdict == "holds in part"
    assert claims.judge("erase/nothing", of(uce=clean)).verdict == "not measured"


def test_only_what_changed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int, tuple[str, ...]]] = []

    def examine(which: work.Case | Pair, seed: int, systems: tuple[str, ...]) -> dict[str, Any]:
        if isinstance(which, Pair):
            ran.append((which.first, seed, tuple(systems)))
            return {s: together(seed) for s in systems}
        ran.append((which.concept, seed, tuple(systems)))
        return {s: case(which.concept, seed, "0000") for s in systems}

    monkeypatch.setattr(work, "examine", examine)
    monkeypatch.setattr(work.os, "cpu_count", lambda: 1)
    told: list[int] = []
    work.run("erase/uce", tmp_path, progress=lambda what, done, total: told.append(done))
    cases = len(work.CASES["erase"]) * len(work.SEEDS) + len(PAIRS["erase"]) * len(interaction.SEEDS)
    assert len(ran) == cases == told[-1]
    work.run("erase/uce", tmp_path)
    assert len(ran) == cases, "nothing changed, nothing runs"
    work.run("erase/uce", tmp_path, again=True)
    assert len(ran) == 2 * cases
    monkeypatch.setitem(work.BUDGETS, "erase/uce", {"ridge": 0.1})
    work._key.cache_clear()
    work.run("erase/uce", tmp_path)
    assert len(ran) == 3 * cases, "another budget is another exam"
    work._key.cache_clear()
    stored = json.loads((tmp_path / "erase" / "uce.json").read_text())
    assert len(stored["cases"] + stored["interactions"]) == cases, "results of the old budget are gone"
    text = table.write(tmp_path, tmp_path / "systems.md").read_text()
    assert "`erase/uce`" in text
    assert "**holds**" in text


def test_a_request_in_other_sentences_is_another_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        work._key.cache_clear()
        work._asked.cache_clear()
        return work._key("erase/uce", work.CASES["erase"][2], 0)

    first = key()
    assert key() == first
    monkeypatch.setattr(type(GLYPHS), "wordings", lambda self, **words: (self.prompt(**words),))
    assert key() != first
    monkeypatch.undo()
    assert key() == first


def test_a_systems_digest_covers_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "erase/a.py": "from palimpsest.ops.b import c\nfrom palimpsest.core import d",
        "ops/b.py": "from palimpsest.ops import e",
        "ops/e.py": "x = 1",
        "core/d.py": "y = 1",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(catalog, "ROOT", tmp_path)

    def digest() -> str:
        work.source_digest.cache_clear()
        return work.source_digest("palimpsest.erase.a")

    first = digest()
    (tmp_path / "core" / "d.py").write_text("y = 2")
    assert digest() == first
    (tmp_path / "ops" / "e.py").write_text("x = 2")
    assert digest() != first
    work.source_digest.cache_clear()


def test_unknown_exams_are_refused() -> None:
    with pytest.raises(BadRequest, match="no system"):
        work.run("insert", Path("nowhere"))


def test_the_same_is_asked_for_in_other_words() -> None:
    star = reworded(["a red star", "a star on a sky background", "two things"], "star")
    assert star[0] == "a red pentagram"
    assert star[1].endswith("a starlet on a sky background")
    assert star[2] == "two things"
    name = reworded(["a portrait of Aisha smiling"], "Aisha")[0]
    assert "Aisha" in name
    assert "smiling" not in name


def test_paraphrases_change_no_other_picture() -> None:
    star = Concept(name="star", prompts=("a star",))
    groups = (Group(role="target", concept=star, prompts=("a star", "a red star"), seeds=1),)
    plain = Plan(request=Request(target=(star,)), groups=groups, first_seed=7)
    more = with_paraphrases(plain, 1)
    assert more.shots[:2] == plain.shots
    assert [(more.groups[s.group].role, s.prompt) for s in more.shots[2:]] == [("paraphrase", "a pentagram")]


def test_a_system_without_all_results_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "erase").mkdir()
    some = [case("star", 0, "0000")]
    (tmp_path / "erase" / "uce.json").write_text(json.dumps({"cases": some, "interactions": [together(0, "0001")]}))
    text = table.write(tmp_path, tmp_path / "systems.md").read_text()
    row = next(line for line in text.splitlines() if "`erase/uce`" in line and "**" in line)
    assert "**not measured yet** | 1 of 12 runs done" in row
    assert "| 0 % / 0 %; +0 | 100 % / 0 %; +0 | 25 % / 0 %; +0 | 0 % / 0 %; +0 | it cannot |" in text


def test_the_committed_table_is_that_of_the_committed_results(tmp_path: Path) -> None:
    made = table.write(ROOT / "exam" / "results", tmp_path / "systems.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "systems.md").read_text(encoding="utf-8") == made, "run `palimpsest exam table`"


def test_what_was_not_measured_is_said_to_be() -> None:
    found = read(ROOT / "exam" / "results", "erase")
    rows = [line for line in (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines() if "**" in line]
    systems = [i for i in catalog.entries() if i.startswith("erase/")]
    assert len([r for r in rows if "`erase/" in r]) == len(systems)
    for system in systems:
        row = next(r for r in rows if f"`{system}`" in r)
        study = claims.OWN.get(system, ("",))[0]
        done = by_system(studies.read(ROOT / "exam" / "results", study)) if study else {}
        measured = system in done if study else table.complete("erase", found.get(system, []))
        assert ("**not measured yet**" in row) != measured, system


def test_results_are_of_installed_systems() -> None:
    assert set(read(ROOT / "exam" / "results", "erase")) <= set(catalog.entries())
