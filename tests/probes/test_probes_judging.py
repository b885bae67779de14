"""How far judges can be trusted: errors of a model that judges itself, limits that allow for them, and disagreement."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence_fixtures import COMMAND, Reader, Scribe, damaging, erased, request, small_plan
from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.ops.statistics import Interval, wilson
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import classes_of
from palimpsest.probes.judging import AGREEMENT, IMAGINED, MISSED, Agreement, Errors, JudgeErrors, errors, kappa
from palimpsest.probes.own_judge import NAME
from palimpsest.probes.plan import plan
from palimpsest.probes.presence import Presence
from palimpsest.receipt import audit
from palimpsest.receipt.generator_words import headline, sentences
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.run import Look, case
from palimpsest.run.looking import judges

STAR = request("star").target[0]


class Doubter(Reader):
    """The audited model's part, played by a reader that misses every third star and takes every fourth moon for one."""

    def __init__(self, name: str = NAME, *, itself: bool = True) -> None:
        super().__init__()
        self.evaluator = replace(self.evaluator, name=name, judges_itself=itself)
        self.stars = self.moons = 0

    def read(self, images: torch.Tensor) -> torch.Tensor:
        found = super().read(images)
        star, moon = (self.evaluator.classes.index(f"subject:{w}") for w in ("star", "moon"))
        for row in found:
            if row[star] > 0.5:
                self.stars += 1
                row[star] = float(self.stars % 3 != 0)
            elif row[moon] > 0.5:
                self.moons += 1
                row[star] = float(self.moons % 4 == 0)
        return found


@lru_cache(maxsize=1)
def doubted() -> Drawn:
    """What `erased` holds, read by both."""
    from palimpsest.core.trace import Trace
    from palimpsest.probes.drawn import measured

    evidence = erased()
    both = [Reader(), Doubter()]
    read = measured(evidence.plan, evidence.gallery, both, Trace())
    return replace(evidence, measures=read, evaluators={j.evaluator.name: j.evaluator for j in both})


def one(found: list[Reading], **wanted: Any) -> Reading:
    chosen = [r for r in found if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(chosen) == 1, [(r.name, r.role, r.concept) for r in found]
    return chosen[0]


def test_errors_are_counted_on_the_untouched_pictures_alone() -> None:
    evidence = doubted()
    plan = evidence.plan
    group = next(i for i, g in enumerate(plan.groups) if g.name == "star")
    classes = classes_of(evidence.evaluators[NAME], STAR)
    asked = len(plan.rows(group=group)) + len(plan.twin_rows(group=group))
    subjects = [i for i, g in enumerate(plan.groups) if g.role == "neighbour"]
    others = sum(len(plan.rows(group=i)) + len(plan.twin_rows(group=i)) for i in subjects)
    seen = [
        evidence(which, NAME, "present")[rows(group=i)][:, classes].any(1)
        for i in subjects
        for which, rows in (("before", plan.rows), ("other", plan.twin_rows))
    ]
    known = errors(evidence, NAME, [classes])
    assert (known.asked, known.others) == (asked, others)
    assert known.missed.value == pytest.approx(1 / 3, abs=0.1)
    assert known.imagined.value == pytest.approx(float(torch.cat(seen).float().mean()))
    assert known.imagined.value > 0
    found = JudgeErrors().run(evidence)
    assert {r.evaluator.name for r in found if r.evaluator} == {NAME}  # whoever is not the model itself is not asked
    missed = one(found, name=MISSED, concept="star")
    assert (missed.n, missed.value) == (asked, pytest.approx(100 * known.missed.value, abs=1e-3))
    assert one(found, name=IMAGINED, concept="star").n == others


def test_limits_allow_for_both_errors() -> None:
    """Rogan and Gladen's equation holds at either limit with the error that matters there."""
    known = Errors(missed=Interval(0.1, 0.05, 0.2), imagined=Interval(0.02, 0.0, 0.1), asked=60, others=60)
    rate = Interval(0.3, 0.2, 0.4)
    wide = known.widened(rate)
    assert wide.value == 0.3
    assert wide.high * (1 - 0.2) == pytest.approx(rate.high)
    assert wide.low + (1 - wide.low) * 0.1 == pytest.approx(rate.low)
    assert known.widened(Interval(0.0, 0.0, 0.05)).low == 0.0
    assert known.widened(Interval(1.0, 0.9, 1.0)).high == 1.0
    nothing = replace(known, asked=0, others=0)
    assert nothing.widened(rate) == rate
    hopeless = replace(known, missed=Interval(1.0, 0.9, 1.0), imagined=Interval(1.0, 0.9, 1.0))
    assert hopeless.widened(rate)[1:] == (0.0, 1.0)


def test_presence_by_the_model_itself_is_wider_and_by_others_is_not() -> None:
    found = [r for r in Presence().run(doubted()) if r.concept == "star"]
    theirs, own = found
    assert theirs.evaluator is not None
    assert theirs.evaluator.name == "reader"
    plain = wilson(0, own.n)
    assert theirs.high == pytest.approx(100 * plain.high, abs=1e-3)
    assert own.value == 0
    assert own.high > 1.3 * theirs.high


def test_judges_are_held_against_the_first() -> None:
    evidence = doubted()
    found = Agreement().run(evidence)
    star = one(found, concept="star")
    assert star.name == AGREEMENT
    assert star.evaluator is not None
    assert (star.evaluator.name, star.detail["with"]) == (NAME, "reader")
    rows = evidence.plan.rows(role="target").tolist()
    classes = classes_of(evidence.evaluators[NAME], STAR)
    differ = [
        f"{which}/{row}"
        for which in ("before", "after")
        for row in rows
        if evidence.present("reader", which, classes)[row] != evidence.present(NAME, which, classes)[row]
    ]
    assert star.detail["differ"] == differ
    assert differ
    assert star.value == pytest.approx(100 * (1 - len(differ) / star.n), abs=1e-3)
    assert Agreement().run(erased()) == []


def test_kappa_is_cohens() -> None:
    """20 both yes, 15 both no, 5 and 10 each alone: the textbook's 0.4."""
    a = torch.tensor([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15).bool()
    b = torch.tensor([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15).bool()
    assert kappa(a, b) == pytest.approx(0.4)
    assert kappa(a, a) == 1.0
    assert kappa(torch.ones(4).bool(), torch.ones(4).bool()) is None


def test_the_receipt_says_who_judged_and_where_judges_differ() -> None:
    evidence = doubted()
    readings = Generator.readings(evidence)
    said = [s["text"] for s in sentences(readings, ["star"], evidence.plan)]
    assert any(text.startswith(f"By {NAME}: “star” is") for text in said)
    differ = next(text for text in said if "differ on “star”" in text)
    assert "kappa" in differ
    assert "before/" in differ
    (itself,) = [text for text in said if "no outside truth" in text]
    assert "judged as well" in itself
    assert "missed 3" in itself
    alone = [r for r in readings if r.evaluator is None or r.evaluator.judges_itself]
    told = sentences(alone, ["star"], evidence.plan)
    (itself,) = [s for s in told if "no outside truth" in s["text"]]
    assert itself["tone"] == "unsure"
    assert sum("“star” is" in s["text"] for s in told) == 1
    assert not any(
        "no outside truth" in s["text"] for s in sentences(Generator.readings(erased()), ["star"], evidence.plan)
    )


def test_judges_that_do_not_agree_make_the_headline() -> None:
    evidence = doubted()
    readings = Generator.readings(evidence)
    assert headline(readings, ["star"], evidence.plan).startswith("“star” is gone")
    other = [
        replace(r, value=100.0, low=80.0, high=100.0, p=1.0)
        if r.name == "presence" and r.evaluator is not None and r.evaluator.judges_itself and r.concept == "star"
        else r
        for r in readings
    ]
    assert headline(other, ["star"], evidence.plan) == "“star”: the judges do not agree"


def test_whoever_is_named_judges_beside_what_the_model_brings() -> None:
    scribe = Scribe()
    chosen = small_plan(scribe)

    def names(*named: str) -> list[str]:
        return [j.source for j in judges(host, chosen, Look(judges=named))]

    host: Any = scribe
    assert names() == ["tiny/glyphs"]
    assert names("none") == []
    assert names("none", "tiny/faces") == ["tiny/faces"]
    host = host_of("sd")
    chosen = plan(host, Request(target=(STAR,)), prompts_per_concept=1, seeds=1, steps=5, guidance=2.0)
    assert names() == ["own:10"] == names("own")
    assert names("own:33", "tiny/glyphs") == ["tiny/glyphs", "own:33"]
    assert names("tiny/glyphs") == ["tiny/glyphs"]  # nobody else was asked
    assert names("none", "own") == ["own:10"]
    assert names("none") == []
    with pytest.raises(BadRequest, match="named twice"):
        names("own", "own:5")


def test_a_model_without_a_world_gets_presence_and_its_receipt_holds(tmp_path: Path) -> None:
    host = host_of("sd")
    asked = Request(target=(Concept(name="star"),), keep=(Concept(name="moon"),))
    change = Patch(
        base=host.fingerprint(),
        deltas={"unet.conv_out.bias": Dense(value=torch.full((host.channels,), 0.5))},
        provenance={},
    )
    about: Any = case(host, asked, look=Look(prompts=2, seeds=1, steps=2, guidance=2.0))
    about.check()
    columns = len(about.plan.concepts) + len({c.kind for c in about.plan.concepts})  # and none of each kind
    assert f"by at most {5 * columns} forwards" in about.forecast(None)
    from palimpsest.core.trace import Trace

    made = about.audit(change, out=tmp_path, resume=False, command=COMMAND, trace=Trace())
    star = made.presence("star")
    assert star is not None
    assert star.evaluator is not None
    assert star.evaluator.judges_itself
    assert made.data["evaluators"][NAME]["source"].startswith("own:")
    assert made.data["evaluators"][NAME]["judges_itself"] is True
    spent = made.data["run"]["audit"]
    assert spent["forwards"]["denoiser"] > 4 * spent["pictures"]  # drawing took two steps of two rows each
    assert NAME in (tmp_path / "receipt.html").read_text(encoding="utf-8")
    for how in ("none", "sample", "all"):
        found = verify(tmp_path / "receipt.json", before=host, remeasure=how)  # type: ignore[arg-type]
        assert [str(f) for f in found if not f.ok] == []
        assert not any(f.status == "not checked" for f in found)
    found = verify(tmp_path / "receipt.json", before=host_of("sd_v"))
    assert [f.status for f in found if f.what == f"evaluator {NAME}"] == ["not checked"]  # another model is no judge


def test_a_reader_that_knows_the_target_tells_of_it_where_the_first_does_not() -> None:
    """Nobody is told that no judge knew it, and its rates are compared."""

    class Colours(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.evaluator = replace(
                self.evaluator, name="colours", classes=tuple(f"x {c}" for c in self.evaluator.classes)
            )

    host = Scribe()
    made = audit(
        host, damaging(host), request("star"), subject=Generator(plan=small_plan(host), judges=[Colours(), Reader()])
    )
    said = made.summary()
    assert "“star” is gone" in said
    assert "No judge knows" not in said
    assert Generator.rates(made.evidence).target.value == 0
