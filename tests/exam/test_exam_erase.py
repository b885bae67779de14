"""The exam of erasing: how records are pooled and judged, and in which words the same is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from exam_fixtures import case

from palimpsest.core.concept import Concept, Request
from palimpsest.exam.judged import Judged, verdict_of
from palimpsest.exam.verbs import erase
from palimpsest.exam.verbs.erase import Summary, summarise, with_paraphrases
from palimpsest.probes.groups import Group
from palimpsest.probes.plan import Plan
from palimpsest.tiny.phrases import reworded


def of(**systems: list[dict[str, Any]]) -> dict[str, dict[str, Summary]]:
    """Summaries of systems by their records."""
    known: dict[str, dict[str, Summary]] = {}
    for name, records in systems.items():
        concepts = ["", *dict.fromkeys(r["case"]["concept"] for r in records)]
        summaries = {c: summarise(records, c) for c in concepts}
        known[f"erase/{name}"] = {c: s for c, s in summaries.items() if s is not None}
    return known


def judge(system: str, main: dict[str, dict[str, Summary]]) -> Judged:
    return verdict_of(system, main, {}, erase.judge)


def test_records_are_pooled_over_seeds_and_concepts() -> None:
    records = [case("star", 0, "0001", oracle="0000"), case("star", 1, "0000"), case("blue", 0, "1111", "0011")]
    one, every = summarise(records, "star"), summarise(records)
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
    records[1]["cost"]["seconds"] = 1.5
    least = summarise(records)
    assert least is not None
    assert least.seconds == 1.5
    assert summarise(records, "moon") is None


def test_refusals_are_no_runs() -> None:
    refused = {"case": {"concept": "star", "kind": "object"}, "seed": 0, "refused": "it cannot"}
    assert summarise([refused]) is None
    both = summarise([refused, case("star", 1, "0000")])
    assert both is not None
    assert both.runs == 1


def test_claims_are_judged_by_the_numbers() -> None:
    clean, leaky = [case("star", s, "0000") for s in range(3)], [case("star", s, "1110") for s in range(3)]
    harm = [case("star", s, "0000", "0000") for s in range(3)]
    assert judge("erase/uce", of(uce=clean)).verdict == "holds"
    assert judge("erase/uce", of(uce=harm)).verdict == "holds in part"
    assert "neighbours of star" in judge("erase/uce", of(uce=harm)).why
    assert judge("erase/uce", of(uce=[case("star", 0, "1111", "0000")])).verdict == "does not hold here"
    assert judge("erase/rece", of(rece=clean, uce=leaky)).verdict == "holds"
    assert judge("erase/rece", of(rece=leaky, uce=clean)).verdict == "does not hold here"
    assert judge("erase/rece", of(rece=clean)).verdict == "not measured"
    assert judge("erase/sld", of(sld=clean)).verdict == "holds"
    assert judge("erase/sld", of(sld=leaky)).verdict == "holds in part"
    assert judge("erase/negative_prompt", of(negative_prompt=clean)).verdict == "baseline"
    assert judge("erase/nothing", of(uce=clean)).verdict == "not measured"


def test_a_likely_cause_is_given_only_where_something_falls_short() -> None:
    short = judge("erase/trce", of(trce=[case("star", 0, "1111")]))
    assert short.why.endswith("every state holds all words")
    assert judge("erase/trce", of(trce=[case("star", 0, "0000")])).why.startswith("every concept gone")


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
