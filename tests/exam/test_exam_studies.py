"""Studies of claims that erasing alone does not show: how pictures are read, and when a claim holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exam_fixtures import HALF, NO, YES, three

from palimpsest.core.concept import Concept, Request
from palimpsest.exam import budgets
from palimpsest.exam.judged import verdict_of
from palimpsest.exam.pictures import PLAIN, UNTOUCHED, host_of
from palimpsest.exam.studies import debiasing, letters, stamps
from palimpsest.ops.statistics import Interval
from palimpsest.worlds.glyphs import GLYPHS

N = len(YES)


def judged(system: str, by: dict[str, Any]) -> str:
    """The verdict of the study that measures a system's claim on its records."""
    return verdict_of(system, {}, {budgets.said(system, "study"): by}, None).verdict


def test_stamps_are_put_and_found() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = GLYPHS.sample(48, generator=draws)
    labels["style"].fill_(GLYPHS.vocabulary["style"].index("flat"))
    plain = GLYPHS.draw(labels, generator=draws).images
    images, masks = stamps.stamped(plain, 0.5, 0.5, draws)
    has = "".join(str(int(m.any())) for m in masks)
    assert 0 < has.count("1") < 48
    assert stamps.found(plain) == "0" * 48
    found = stamps.found(images)
    missed = sum(h == "1" and f == "0" for h, f in zip(has, found, strict=True))
    assert not any(h == "0" and f == "1" for h, f in zip(has, found, strict=True))
    assert missed <= 0.15 * has.count("1"), "a stamp over the subject's edge may be missed"
    outside = masks[:, None].expand_as(images) < 0.5
    assert torch.equal(images[outside], plain[outside])


def test_latents_hold_the_stamp() -> None:
    host = host_of("tiny/sd")
    images, _ = stamps.stamped(torch.full((4, 3, 64, 64), 0.7), 1.0, 0.5, torch.Generator().manual_seed(0))
    assert stamps.found(host.pixels(host.latents(images))) == "1111"


def test_letters_of_one_kind_are_swapped() -> None:
    assert letters.swapped("a moon on it", "moon") == "a m\u043e\u043en \u043en it"
    assert letters.swapped("a house", "house") == "a h\u043euse"
    for word in (*letters.CASE["read"], *letters.CASE["new"]):
        assert letters.swapped(f"a {word}", word) != f"a {word}"


def test_new_words_are_in_no_text_of_the_training() -> None:
    from palimpsest.ops.captions import captions

    texts = " ".join(captions(2000, set())).split()
    assert set(letters.CASE["read"]) <= set(texts)
    assert not set(letters.CASE["new"]) & set(texts)


def test_letters_are_judged_by_swapped_and_plain_prompts() -> None:
    before = three({"read": NO, "new": NO, "plain": YES, "cost": {}})

    def verdict(read: str, new: str, plain: str) -> str:
        after = three({"read": read, "new": new, "plain": plain, "cost": {}})
        return judged("erase/homoglyphs", {UNTOUCHED: before, "erase/homoglyphs": after})

    assert verdict(YES, YES, YES) == "holds"
    assert verdict(YES, NO, YES) == "holds in part"
    assert verdict(YES, YES, HALF) == "holds in part"
    assert verdict(NO, NO, YES) == "does not hold here"
    assert judged("erase/homoglyphs", {UNTOUCHED: before}) == "not measured"


def test_stamps_are_judged_against_usual_fine_tuning() -> None:
    usual = three({"stamped": YES, "shown": YES, "negative": YES})

    def verdict(stamped: str, shown: str) -> str:
        by = {PLAIN: usual, "erase/geom_erasing": three({"stamped": stamped, "shown": shown})}
        return judged("erase/geom_erasing", by)

    assert verdict(NO, YES) == "holds"
    assert verdict(NO, HALF) == "holds in part"
    assert verdict(HALF, YES) == "holds in part"
    assert verdict(YES, YES) == "does not hold here"


def test_backfire_needs_both_halves() -> None:
    def verdict(safety: str, on_top: str, beside: str) -> str:
        record = {"target, safety": safety, "target, on top": on_top, "target, beside": beside, "target, alone": YES}
        return judged("erase/modular_lora", {"erase/modular_lora": three(record)})

    assert verdict(NO, YES, NO) == "holds"
    assert verdict(NO, YES, HALF) == "holds in part"
    assert verdict(NO, NO, NO) == "does not hold here"
    assert verdict(NO, YES, YES) == "does not hold here"


def test_editing_is_judged_by_the_target_and_by_other_edits() -> None:
    def verdict(mine: str, esd: str, uce: str, others: str = YES) -> str:
        sets = {UNTOUCHED: (YES, YES), "erase/ace": (mine, others), "erase/esd": (esd, YES), "erase/uce": (uce, YES)}
        by = {s: three({"target": target, "others": other}) for s, (target, other) in sets.items()}
        return judged("erase/ace", by)

    assert verdict(NO, HALF, HALF) == "holds"
    assert verdict(NO, HALF, HALF, others=HALF) == "holds in part"
    assert verdict(NO, NO, NO) == "holds"
    assert verdict(HALF, YES, YES) == "holds in part"
    assert verdict(YES, NO, NO) == "does not hold here"


def test_evenness() -> None:
    assert debiasing.distance(Interval(0.9, 0.8, 0.95)) == pytest.approx((0.4, 0.3, 0.45))
    assert debiasing.distance(Interval(0.55, 0.45, 0.6)) == pytest.approx((0.05, 0.0, 0.1))
    share = debiasing.first_share(three({"colours": "0001--"}))
    assert share.value == pytest.approx(0.75)


def test_debiasing_is_judged_against_the_biased_model() -> None:
    def record(colours: str, shown: str = YES) -> list[dict[str, Any]]:
        return three({"colours": colours, "shown": shown, "others": YES})

    biased, even = "0" * (N - 1) + "1", "01" * (N // 2)
    by = {UNTOUCHED: record(biased), PLAIN: record(biased), debiasing.UCE: record(even)}
    assert judged(debiasing.UCE, by) == "holds"
    assert judged(debiasing.UCE, {**by, debiasing.UCE: record(even, HALF)}) == "holds in part"
    assert judged(debiasing.UCE, {**by, debiasing.UCE: record(biased)}) == "does not hold here"
    assert judged(debiasing.INVDIFF, {**by, debiasing.INVDIFF: record(even)}) == "holds"
    helped = {**by, PLAIN: record(even), debiasing.INVDIFF: record(even)}
    assert judged(debiasing.INVDIFF, helped) == "does not hold here", "plain fine-tuning does it too"


def test_biased_pictures_are_biased_and_do_not_say_so() -> None:
    debiasing.biased_pictures.cache_clear()
    images, captions = debiasing.biased_pictures()
    assert len(images) == len(captions) == debiasing.CASE["pictures"]
    assert not any(set(c.replace(",", "").split()) & set(GLYPHS.vocabulary["colour"]) for c in captions)
    red = (images[:, 0] > images[:, 2] + 0.3).flatten(1).float().mean(1) > 0.02
    assert float(red.float().mean()) == pytest.approx(debiasing.CASE["share"], abs=0.12)


def test_requests_of_letters_are_letters() -> None:
    for double, letter in letters.CASE["doubles"].items():
        Request(target=(Concept(name=double),), toward=(Concept(name=letter),))
        assert double != letter
        assert len(double) == len(letter) == 1
