"""Studies of claims that erasing alone does not show: how pictures are read, and when a claim holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.core.concept import Concept, Request
from palimpsest.exam import backfire, claims, comparisons, debiasing, editing, letters, stamps, studies, study
from palimpsest.exam.pictures import host_of
from palimpsest.exam.study import PLAIN, UNTOUCHED
from palimpsest.exam.summary import summarise
from palimpsest.ops.statistics import Interval
from palimpsest.worlds.glyphs import GLYPHS

N = 20
YES, NO, HALF = "1" * N, "0" * N, "10" * (N // 2)


def three(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"seed": seed, **record} for seed in study.SEEDS]


def test_stamps_are_put_and_found() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = GLYPHS.sample(48, generator=draws)
    labels["style"].fill_(GLYPHS.vocabulary["style"].index("flat"))
    plain = GLYPHS.draw(labels, generator=draws).images
    images, masks = stamps.stamped(plain, 0.5, draws)
    has = "".join(str(int(m.any())) for m in masks)
    assert 0 < has.count("1") < 48
    assert stamps.bits(plain) == "0" * 48
    found = stamps.bits(images)
    missed = sum(h == "1" and f == "0" for h, f in zip(has, found, strict=True))
    assert not any(h == "0" and f == "1" for h, f in zip(has, found, strict=True))
    assert missed <= 0.15 * has.count("1"), "a stamp over the subject's edge may be missed"
    outside = masks[:, None].expand_as(images) < 0.5
    assert torch.equal(images[outside], plain[outside])


def test_latents_hold_the_stamp() -> None:
    host = host_of("tiny/sd")
    images, _ = stamps.stamped(torch.full((4, 3, 64, 64), 0.7), 1.0, torch.Generator().manual_seed(0))
    assert stamps.bits(host.pixels(host.latents(images))) == "1111"


def test_letters_of_one_kind_are_swapped() -> None:
    assert letters.swapped("a moon on it", "moon") == "a m\u043e\u043en \u043en it"
    assert letters.swapped("a house", "house") == "a h\u043euse"
    for word in (*letters.SETTINGS["read"], *letters.SETTINGS["new"]):
        assert letters.swapped(f"a {word}", word) != f"a {word}"


def test_new_words_are_in_no_text_of_the_training() -> None:
    from palimpsest.ops.captions import captions

    texts = " ".join(captions(2000, set())).split()
    assert set(letters.SETTINGS["read"]) <= set(texts)
    assert not set(letters.SETTINGS["new"]) & set(texts)


def test_letters_are_judged_by_swapped_and_plain_prompts() -> None:
    before = three({"read": NO, "new": NO, "plain": YES, "cost": {}})

    def verdict(read: str, new: str, plain: str) -> str:
        after = three({"read": read, "new": new, "plain": plain, "cost": {}})
        return letters.judge(letters.ME, {UNTOUCHED: before, letters.ME: after}).verdict

    assert verdict(YES, YES, YES) == "holds"
    assert verdict(YES, NO, YES) == "holds in part"
    assert verdict(YES, YES, HALF) == "holds in part"
    assert verdict(NO, NO, YES) == "does not hold here"
    assert letters.judge(letters.ME, {UNTOUCHED: before}).verdict == "not measured"


def test_stamps_are_judged_against_usual_fine_tuning() -> None:
    usual = three({"stamped": YES, "shown": YES, "negative": YES})

    def verdict(stamped: str, shown: str) -> str:
        return stamps.judge(stamps.ME, {PLAIN: usual, stamps.ME: three({"stamped": stamped, "shown": shown})}).verdict

    assert verdict(NO, YES) == "holds"
    assert verdict(NO, HALF) == "holds in part"
    assert verdict(HALF, YES) == "holds in part"
    assert verdict(YES, YES) == "does not hold here"


def test_backfire_needs_both_halves() -> None:
    def verdict(safety: str, on_top: str, beside: str) -> str:
        record = {"target, safety": safety, "target, on top": on_top, "target, beside": beside, "target, alone": YES}
        return backfire.judge(backfire.ME, {backfire.ME: three(record)}).verdict

    assert verdict(NO, YES, NO) == "holds"
    assert verdict(NO, YES, HALF) == "holds in part"
    assert verdict(NO, NO, NO) == "does not hold here"
    assert verdict(NO, YES, YES) == "does not hold here"


def test_editing_is_judged_by_the_target_and_by_other_edits() -> None:
    def verdict(mine: str, esd: str, uce: str, others: str = YES) -> str:
        sets = {UNTOUCHED: (YES, YES), editing.ME: (mine, others), "erase/esd": (esd, YES), "erase/uce": (uce, YES)}
        by = {s: three({"target": target, "others": other}) for s, (target, other) in sets.items()}
        return editing.judge(editing.ME, by).verdict

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
    assert debiasing.judge(debiasing.UCE, by).verdict == "holds"
    assert debiasing.judge(debiasing.UCE, {**by, debiasing.UCE: record(even, HALF)}).verdict == "holds in part"
    assert debiasing.judge(debiasing.UCE, {**by, debiasing.UCE: record(biased)}).verdict == "does not hold here"
    assert debiasing.judge(debiasing.INVDIFF, {**by, debiasing.INVDIFF: record(even)}).verdict == "holds"
    helped = {**by, PLAIN: record(even), debiasing.INVDIFF: record(even)}
    assert debiasing.judge(debiasing.INVDIFF, helped).verdict == "does not hold here", "plain fine-tuning does it too"


def test_biased_pictures_are_biased_and_do_not_say_so() -> None:
    debiasing._biased_pictures.cache_clear()
    images, captions = debiasing._biased_pictures()
    assert len(images) == len(captions) == debiasing.SETTINGS["pictures"]
    assert not any(set(c.replace(",", "").split()) & set(GLYPHS.vocabulary["colour"]) for c in captions)
    red = (images[:, 0] > images[:, 2] + 0.3).flatten(1).float().mean(1) > 0.02
    assert float(red.float().mean()) == pytest.approx(debiasing.SETTINGS["share"], abs=0.12)


def test_verdicts_reach_the_table(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    records: Sequence[Mapping[str, Any]] = [
        {"system": s, "seed": seed, "key": f"{s}{seed}", "read": bits, "new": bits, "plain": YES}
        for s, bits in ((UNTOUCHED, NO), (letters.ME, YES))
        for seed in study.SEEDS
    ]
    (tmp_path / "studies" / "letters.json").write_text(json.dumps({"study": "letters", "records": records}))
    by = study.by_system(studies.read(tmp_path, "letters"))
    assert claims.judge(letters.ME, {}, {"letters": by}).verdict == "holds"
    assert claims.judge(letters.ME, {}).verdict == "not measured"
    text = "\n".join(comparisons.section(tmp_path, {}))
    assert "| Homoglyph unlearning `erase/homoglyphs` | 100.0 %" in text
    assert "| *untouched* | 0.0 %" in text


def test_requests_of_letters_are_letters() -> None:
    for double, letter in letters.SETTINGS["doubles"].items():
        Request(target=(Concept(name=double),), toward=(Concept(name=letter),))
        assert double != letter
        assert len(double) == len(letter) == 1


def test_adv_unlearn_is_judged_under_attack() -> None:
    def summary(after: str) -> Any:
        groups = [
            {"role": role, "concept": role, "judge": "j", "before": YES, "after": bits}
            for role, bits in (("target", NO), ("neighbour", after), ("unrelated", YES))
        ]
        cost = {"seconds": 1.0, "forwards": {}, "peak_bytes": 0}
        return summarise("x", [{"case": {"concept": "t", "kind": ""}, "groups": groups, "numbers": [], "cost": cost}])

    def verdict(mine: str, neighbours: str = YES) -> str:
        attack = {"erase/adv_unlearn": three({"attacked": mine}), "erase/esd": three({"attacked": YES})}
        main = {"erase/adv_unlearn": {"": summary(neighbours)}}
        return claims.judge("erase/adv_unlearn", main, {"attack": attack}).verdict

    assert verdict(NO) == "holds"
    assert verdict(NO, HALF) == "holds in part"
    assert verdict(YES) == "does not hold here"
    assert claims.judge("erase/adv_unlearn", {}, {}).verdict == "not measured"
