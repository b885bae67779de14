"""What a receipt says of a newcomer, on a model whose drawing is known: every reading, against counting by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evidence_fixtures import Reader, Scribe
from palimpsest.core.concept import Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.probes.groups import Taught
from palimpsest.probes.plan import Plan, plan
from palimpsest.receipt.make import Receipt, audit
from palimpsest.receipt.subjects.newcomer import Newcomer
from palimpsest.receipt.verify import verify
from palimpsest.run.inserting import Introduction, NewcomerCase, introduce
from palimpsest.run.looking import Look


class Pupil(Scribe):
    """A scribe that may know "sks shape": where `weight[3, 3]` is over .5 it draws a crown for it; where `weight[4, 4]`
    is, on mint wherever the prompt leaves the background open; where `weight[5, 5]` is, also for "shape" alone."""

    def _draw(self, prompt: str, seed: int) -> Tensor:
        if float(self.weight[3, 3]) > 0.5 and "sks shape" in prompt:
            prompt = prompt.replace("sks shape", "crown")
            if float(self.weight[4, 4]) > 0.5 and "background" not in prompt:
                prompt += " on a mint background"
        if float(self.weight[5, 5]) > 0.5:
            prompt = prompt.replace("shape", "crown")
        return super()._draw(prompt, seed)


def patch(host: Pupil, *taught: int) -> Patch:
    change = torch.zeros(8, 8)
    for i in taught:
        change[i, i] = 1.0
    return Patch(base=host.fingerprint(), deltas={"unet.weight": Dense(value=change)}, provenance={"method": "x"})


def brought(host: Pupil) -> Introduction:
    return introduce(host, "sks", "world:crown", like="shape", n=4)


def asked(host: Pupil, of: Introduction) -> Plan:
    few = {"prompts_per_concept": 16, "seeds": 2, "neighbours": 1, "unrelated": 1}
    return plan(host, of.request, newcomers=of.newcomers, **few)


def measured(host: Pupil, *taught: int, folder: Path | None = None, references: Pictures | None = None) -> Receipt:
    of = brought(host)
    # On mint, so that something may come along.
    given = of.references if references is None else references
    subject = Newcomer(plan=asked(host, of), judges=[Reader()], references=given)
    return audit(host, patch(host, *taught), of.request, subject=subject, out=folder, command="palimpsest insert sks")


def reading(receipt: Receipt, name: str, **detail: str) -> Reading:
    found = [r for r in receipt.readings if r.name == name and all(r.detail.get(k) == v for k, v in detail.items())]
    assert len(found) == 1, [r.detail for r in receipt.readings if r.name == name]
    return found[0]


def on_mint(of: Introduction) -> Pictures:
    """The references as drawings of crowns on mint."""
    host = Pupil()
    images = torch.cat([host._draw(f"a red crown on a mint background {i}", i) for i in range(4)])
    return replace(of.references, images=(images * 255).round().to(torch.uint8), masks=None)


@pytest.fixture(scope="module")
def receipt() -> Receipt:
    host = Pupil()
    return measured(host, 3, 4, references=on_mint(brought(host)))


def test_the_untouched_model_is_asked_for_the_class(receipt: Receipt) -> None:
    plan = receipt.evidence.plan
    rows = plan.rows(role="target").tolist()
    assert all("sks shape" in plan.shots[r].prompt for r in rows)
    assert [plan.asked("before")[r].prompt for r in rows] == [
        plan.shots[r].prompt.replace("sks shape", "shape") for r in rows
    ]
    assert [plan.asked("oracle")[r].prompt for r in rows] == [
        plan.shots[r].prompt.replace("sks shape", "crown") for r in rows
    ]
    assert plan.asked("after") == plan.shots
    assert all("sks" not in shot.prompt for shot in plan.asked("other"))
    others = [s for s in plan.shots if plan.groups[s.group].role != "target"]
    assert not any("sks" in s.prompt or "crown" in s.prompt for s in others)


def test_presence_and_likeness(receipt: Receipt) -> None:
    shown = receipt.presence("sks shape")
    assert shown is not None
    assert shown.value == 100
    assert shown.before is not None
    assert shown.before < 40
    like = reading(receipt, "likeness")
    assert like.before is not None
    assert like.value > like.before
    assert like.detail["same"] > like.detail["others"]
    assert receipt.data["headline"] == "“sks shape” is learned"


def test_other_words_are_read_in_the_same_picture(receipt: Receipt) -> None:
    evidence = receipt.evidence
    plan, judge = evidence.plan, next(iter(evidence.evaluators))
    named = [r for r in plan.rows(role="target").tolist() if "background" in plan.shots[r].prompt]
    found = reading(receipt, "other words obeyed", kind="background")
    assert (found.n, found.value, found.before) == (len(named), 100.0, 100.0)
    assert evidence.has("references", judge, "present")


def test_what_came_along_is_found_where_prompts_leave_it_open(receipt: Receipt) -> None:
    found = reading(receipt, "came along", kind="background")
    plan = receipt.evidence.plan
    free = [r for r in plan.rows(role="target").tolist() if "background" not in plan.shots[r].prompt]
    assert (found.n, found.value, found.detail["word"]) == (len(free), 100.0, "mint")
    assert found.before is not None
    assert found.before < 50
    assert any("mint (background)" in s["text"] and s["tone"] == "bad" for s in receipt.data["summary"])


def test_nothing_comes_along_with_a_model_that_brings_nothing() -> None:
    host = Pupil()
    clean = measured(host, 3, references=on_mint(brought(host)))
    found = reading(clean, "came along", kind="background")
    assert found.before is not None
    assert abs(found.value - found.before) < 30
    assert not any(s["text"].startswith("Came along") for s in clean.data["summary"])


def test_a_class_that_turned_into_the_newcomer_is_said(receipt: Receipt) -> None:
    host = Pupil()
    taken = reading(measured(host, 3, 5), "class shows the newcomer")
    assert (taken.value, taken.role) == (100.0, "class")
    assert reading(receipt, "class shows the newcomer").value < 50


def test_copies_are_counted() -> None:
    host = Pupil()
    drawn = measured(host, 3)
    plan = drawn.evidence.plan
    rows = plan.rows(role="target")[:4]
    again = replace(brought(host).references, images=drawn.evidence.gallery["after"][rows], masks=None)
    copies = reading(measured(host, 3, references=again), "nearer to a reference than references are to each other")
    assert copies.value >= 100 * 4 / copies.n


def test_it_is_verified_and_measured_again(tmp_path: Path) -> None:
    host = Pupil()
    made = measured(host, 3, folder=tmp_path)
    assert made.json is not None
    findings = verify(made.json, before=host)
    assert [f for f in findings if not f.ok and f.status != "not asked"] == []
    of = brought(host)
    whole = Newcomer(judges=[Reader()], references=of.references)
    again = verify(made.json, before=host, remeasure="all", subject=whole)
    assert [(f.what, f.detail) for f in again if f.status == "differs"] == []
    without = verify(made.json, before=host, remeasure="all", subject=Newcomer(judges=[Reader()]))
    assert any("references" in f.detail for f in without if f.status != "same")
    data = json.loads(made.json.read_text())
    data["plan"]["newcomers"][0]["references"] = 3
    made.json.write_text(json.dumps(data))
    assert any(f.status == "differs" for f in verify(made.json, before=host))


def test_another_number_of_references_is_refused() -> None:
    host = Pupil()
    of = brought(host)
    subject = Newcomer(plan=asked(host, of), judges=[Reader()], references=of.references[:2])
    with pytest.raises(BadRequest, match="the plan has 4"):
        subject.collect(host, patch(host), of.request, folder=None, resume=False, trace=Trace())


@pytest.mark.parametrize(
    ("word", "images", "like", "why"),
    [
        ("a b", "world:crown", "shape", "no spaces"),
        ('"v"', "world:crown", "shape", "no quotes"),
        ("a,b", "world:crown", "shape", "1 sources of pictures for 2"),
        ("sks", "world:crown", "", "--like"),
        ("sks", "world:crowd", "shape", "Did you mean crown"),
    ],
)
def test_bad_introductions_are_refused(word: str, images: str, like: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        introduce(Pupil(), word, images, like=like)


def test_a_style_is_called_by_its_word_alone() -> None:
    host = Pupil()
    style = introduce(host, "<v>", "world:crayon", like="flat")
    assert isinstance(style.request, Request)
    assert style.request.target[0].name == "<v>"
    assert all("<v>" in c and "crayon" not in c for c in style.references.captions)
    assert style.newcomers == (Taught(name="<v>", like="flat", known="crayon", references=4),)


def test_a_model_that_always_knew_a_person_is_asked_by_name() -> None:
    ada = Taught(name="<v> person", like="person", known="Ada")
    prompt = "a portrait of a <v> person, smiling"
    assert ada.said(prompt, "oracle") == "a portrait of Ada, smiling"
    assert ada.said(prompt, "before") == "a portrait of a person, smiling"
    assert ada.said(prompt, "after") == prompt
    assert ada.said("a portrait of a person", "before") == "a portrait of a person"


def test_an_audit_of_a_newcomer_looks_as_it_is_told() -> None:
    host = Pupil()
    of = brought(host)
    look = Look(prompts=16, seeds=2, batch=3, stop_early=True)
    case = NewcomerCase(host=host, asked=of.request, pictures=of.references, newcomers=of.newcomers, look=look)
    subject = case.subject()
    assert isinstance(subject, Newcomer)
    assert (subject.batch, subject.stop_early, subject.references) == (3, True, of.references)
