"""Resurfacing: what comes back is counted, beside both ends, and follows from the bits that are kept."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import evidence_fixtures as fixtures
from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import hook_count
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator
from palimpsest.core.sampling import Sampling
from palimpsest.ops import statistics
from palimpsest.ops.drawn import Drawn
from palimpsest.probes.resurfacing import (
    EDITED,
    INVERTED,
    NAMES,
    NEVER,
    RELEARNT,
    UNTOUCHED,
    Budget,
    inversion,
    reading_of,
    relearning,
    resurfacing,
)
from palimpsest.receipt.document import sealed
from palimpsest.receipt.finding import Finding
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.train.benign import Benign, Captioned

STAR = Request(target=(Concept(name="star"),), keep=(Concept(name="moon"), Concept(name="ring")))
SMALL = Budget(
    pictures=3, steps=(0, 2, 4), batch=2, lr=0.05, shown=6, words=1, attack_steps=2, attack_batch=2, sample_steps=2
)


class Bright:
    """Sees a star where a picture is brighter than one number: that of half of the untouched model's stars."""

    source = ""

    def __init__(self, at: float) -> None:
        self.at, self.read_pictures = at, []
        self.evaluator = Evaluator(name="bright", version="1", threshold=0.5, classes=("star", "moon"))

    def read(self, images: Tensor) -> Tensor:
        self.read_pictures.append(images)
        star = (images.mean((1, 2, 3)) > self.at).float()
        return torch.stack([star, 1 - star], 1)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def judge() -> Bright:
    host = host_of("sd")
    images = host.sample(["star"] * 6, list(range(6)), Sampling(steps=2))
    return Bright(float(images.mean((1, 2, 3)).median()))


def darker() -> Patch:
    """An edit that moves every picture: the denoiser's last layer, another way."""
    host = host_of("sd")
    name = "unet.conv_out.bias"
    shape = host.root.get_parameter(name).shape
    return Patch(base=host.fingerprint(), deltas={name: Dense(value=torch.full(shape, 0.5))})


def empty() -> Patch:
    return Patch(base=host_of("sd").fingerprint())


def test_an_empty_patch_has_resurfaced_before_the_first_step() -> None:
    (found,) = relearning(host_of("sd"), empty(), STAR, SMALL, judges=[judge()])
    assert found.name == RELEARNT["benign"]
    assert found.detail["shown"][EDITED][0] == found.detail["shown"][UNTOUCHED][0]
    assert found.before == pytest.approx(100 * found.detail["shown"][UNTOUCHED][0].count("1") / 6, abs=1e-3)
    other = relearning(host_of("sd"), darker(), STAR, SMALL, judges=[judge()])[0]
    assert other.detail["shown"][UNTOUCHED] == found.detail["shown"][UNTOUCHED]


def test_the_edit_stays_on_while_the_model_is_tuned_and_is_off_afterwards() -> None:
    host, seen = host_of("sd"), judge()
    before, hooks = host.fingerprint(), hook_count(host.root)
    relearning(host, darker(), STAR, SMALL, judges=[seen])
    assert host.fingerprint() == before
    assert hook_count(host.root) == hooks
    edited, *_, untouched = seen.read_pictures
    assert not torch.allclose(edited, untouched, atol=1e-3)


def test_a_point_on_the_way_is_a_fine_tuning_that_ended_there() -> None:
    host, seen, short = host_of("sd"), judge(), judge()
    relearning(host, darker(), STAR, SMALL, kind="targeted", judges=[seen])
    relearning(host, darker(), STAR, replace(SMALL, steps=(2,)), kind="targeted", judges=[short])
    torch.testing.assert_close(seen.read_pictures[1], short.read_pictures[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen.read_pictures[0], seen.read_pictures[1], atol=1e-3)
    assert not torch.allclose(seen.read_pictures[1], seen.read_pictures[2], atol=1e-3)


def test_the_model_that_never_saw_it_gets_the_same_work() -> None:
    host = host_of("sd")
    found = relearning(host, darker(), STAR, SMALL, judges=[judge()], oracle=host)[0]
    assert list(found.detail["shown"]) == [EDITED, NEVER, UNTOUCHED]
    assert [len(b) for b in found.detail["shown"][NEVER]] == [6, 6, 6]
    alike = relearning(host, empty(), STAR, SMALL, judges=[judge()], oracle=host)[0]
    assert alike.detail["shown"][NEVER] == alike.detail["shown"][EDITED]
    assert alike.curve is not None
    assert [s.name for s in alike.curve.series] == [EDITED, NEVER, UNTOUCHED]


def test_a_reading_is_wilsons_of_its_last_bits() -> None:
    shown = {EDITED: ["0000000000", "1110000000"], UNTOUCHED: ["1111111100"]}
    found = reading_of(NAMES[0], "star", None, {"steps": [0, 40], "shown": shown, "budget": {}})
    rate = statistics.wilson(3, 10)
    assert (found.value, found.n, found.before) == (30.0, 10, 80.0)
    assert (found.low, found.high) == pytest.approx((100 * rate.low, 100 * rate.high), abs=1e-3)
    assert found.curve is not None
    assert found.curve.series[0].y == (0.0, 30.0)
    assert reading_of(found.name, "star", None, json.loads(json.dumps(found.detail))) == found


def test_inversion_reads_with_the_words_and_without() -> None:
    host, seen = host_of("sd"), judge()
    (found,) = inversion(host, empty(), STAR, SMALL, judges=[seen])
    assert found.name == INVERTED
    plain, attacked = found.detail["shown"][EDITED]
    assert plain == found.detail["shown"][UNTOUCHED][0]
    assert len(attacked) == 6
    with_words, without, untouched = seen.read_pictures
    assert not torch.allclose(with_words, without, atol=1e-4)
    torch.testing.assert_close(without, untouched)


def test_benign_pictures_are_of_other_things_and_targeted_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Captioned] = []

    def watch(self: Benign, host: object, request: object, *, data: Captioned, **_: object) -> object:
        learnt.append(data)
        raise ZeroDivisionError

    monkeypatch.setattr(Benign, "prepare", watch)
    for kind in ("benign", "targeted"):
        with pytest.raises(ZeroDivisionError):
            relearning(host_of("sd"), empty(), STAR, SMALL, kind=kind, judges=[judge()])
    benign, targeted = learnt
    assert not any("star" in p for p in benign.prompts)
    assert all("star" in p for p in targeted.prompts)
    assert isinstance(benign.pictures, Drawn)
    assert len(benign.pictures) == SMALL.pictures


@pytest.mark.parametrize(("steps", "oracle"), [((1,), False), ((0, 1, 2), True)])
def test_all_of_it_in_one_call_draws_what_the_budget_says(
    steps: tuple[int, ...], oracle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, budget, drawn = host_of("sd"), replace(SMALL, steps=steps, shown=2), []
    seen, sample = judge(), host.sample

    def counted(prompts: list[str], *given: Any, **how: Any) -> Tensor:
        drawn.append(len(prompts))
        return sample(prompts, *given, **how)

    monkeypatch.setattr(host, "sample", counted)
    found = resurfacing(host, empty(), STAR, budget, judges=[seen], oracle=host if oracle else None)
    assert [r.name for r in found] == list(NAMES)
    assert sum(drawn) == budget.drawn(oracle=oracle)
    assert len({r.detail["shown"][EDITED][0] for r in found if r.detail["steps"][0] == 0}) == 1


def test_a_budget_is_told_and_checked() -> None:
    said = Budget().describe(oracle=True)
    assert "4 fine-tunings of 80 steps x 4 on 16 pictures" in said
    for steps in ((), (0,), (5, 2), (2, 2)):
        with pytest.raises(BadRequest, match="steps"):
            Budget(steps=steps)
    with pytest.raises(BadRequest, match="kind"):
        relearning(host_of("sd"), empty(), STAR, SMALL, kind="other", judges=[])  # type: ignore[arg-type]


def with_resurfacing(folder: Path, **choices: Any) -> dict[str, Any]:
    """A receipt on disk whose three readings of resurfacing were made up."""
    budget = Budget(steps=(0, 40))
    shown = {EDITED: ["0" * 20, "1" * 12 + "0" * 8], UNTOUCHED: ["1" * 20]}
    plain = asdict(budget) | {"steps": [0, 40]}
    attack = plain | {"steps": 60, "batch": 8}
    details = [{"steps": [0, 40], "shown": shown, "budget": plain}] * 2
    details.append({"steps": [0, 60], "shown": shown, "budget": attack})
    reader = fixtures.Reader().evaluator
    found = [reading_of(n, "star", reader, d) for n, d in zip(NAMES, details, strict=True)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("palimpsest.receipt.subjects.generator.resurfacing", lambda *_, **__: found)
        receipt = fixtures.receipt(folder, resurfacing=budget, **choices)
    assert receipt.html is not None
    assert "Resurfacing" in receipt.html.read_text(encoding="utf-8")
    said = "After 40 steps of fine-tuning on 16 pictures of other things, “star” is back in 60 % (39–78)"
    assert said in receipt.summary()
    return json.loads((folder / "receipt.json").read_text(encoding="utf-8"))


def told(folder: Path, data: dict[str, Any]) -> list[Finding]:
    path = folder / "receipt.json"
    path.write_text(json.dumps(sealed(data)), encoding="utf-8")
    return verify(path, before=fixtures.Scribe(), subject=Generator(judges=[fixtures.Reader()]))


def test_a_receipt_keeps_them_and_verify_marks_what_it_cannot_check(tmp_path: Path) -> None:
    data = with_resurfacing(tmp_path)
    found = told(tmp_path, data)
    assert all(f.ok for f in found), [str(f) for f in found if not f.ok]
    assert any(f.status == "vouched" and "resurfacing" in f.what for f in found)
    next(r for r in data["readings"] if r["name"] == NAMES[0])["value"] = 5.0
    assert any(f.status == "differs" and NAMES[0] in f.what for f in told(tmp_path, data))


def test_readings_that_were_asked_for_and_taken_out_are_missed(tmp_path: Path) -> None:
    data = with_resurfacing(tmp_path, command="palimpsest audit --concept star --resurfacing")

    def wrong(**changes: Any) -> str:
        return " ".join(f.detail for f in told(tmp_path, {**data, **changes}) if f.what == "resurfacing")

    none = [r for r in data["readings"] if r["name"] not in NAMES]
    one = [r for r in data["readings"] if r["name"] != NAMES[2]]
    silent = {**data["plan"], "resurfacing": None}
    assert wrong() == ""
    assert all(f"lacks {name} of star by reader" in wrong(readings=none) for name in NAMES)
    assert f"lacks {NAMES[2]}" in wrong(readings=one)
    assert NAMES[0] not in wrong(readings=one)
    assert "its command asks for it" in wrong(readings=none, plan=silent)
    assert "the plan does not ask" in wrong(plan=silent, command="")
    cheaper = {**data["plan"], "resurfacing": {**data["plan"]["resurfacing"], "lr": 1.0}}
    assert "asked for 1.0" in wrong(plan=cheaper)
