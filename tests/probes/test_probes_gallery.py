"""An interrupted audit goes on where it stopped, and ends as if nothing had happened."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from evidence_fixtures import Reader, Scribe, damaging, small_plan
from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.patch import Patch
from palimpsest.probes.drawn import collect
from palimpsest.probes.evaluators import judge
from palimpsest.probes.gallery import Gallery, key
from palimpsest.probes.own_judge import OwnJudge
from palimpsest.probes.plan import Plan
from palimpsest.probes.plan import plan as planned


class Interrupted(Scribe):
    """Draws some pictures, then Ctrl-C is pressed."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self.left = pictures

    def sample(self, prompts, seeds, *how, **choices):  # type: ignore[no-untyped-def]
        if self.drawn + len(prompts) > self.left:
            raise KeyboardInterrupt
        return super().sample(prompts, seeds, *how, **choices)


@pytest.mark.parametrize("pictures", [0, 20, 70])
def test_what_was_drawn_is_not_drawn_again(tmp_path: Path, pictures: int) -> None:
    host, folder = Scribe(), tmp_path / "pictures"
    patch, plan = damaging(host), small_plan(host)
    whole = collect(host, patch, plan, [Reader()], batch=10)
    broken = Interrupted(pictures)
    of = key(broken, patch, plan)
    with pytest.raises(KeyboardInterrupt):
        collect(broken, patch, plan, [Reader()], batch=10, gallery=Gallery(folder, of))
    fresh = Scribe()
    gallery = Gallery(folder, of, resume=True)
    assert len(gallery) == pictures
    again = collect(fresh, patch, plan, [Reader()], batch=10, gallery=gallery)
    assert fresh.drawn == plan.pictures() - pictures
    for which, drawn in whole.gallery.items():
        assert torch.equal(drawn, again.gallery[which])
    gallery.clear()
    assert not folder.exists()


def test_another_audits_pictures_and_damaged_ones_are_not_taken(tmp_path: Path) -> None:
    host = Scribe()
    plan = small_plan(host)
    of = key(host, damaging(host), plan)
    collect(host, damaging(host), plan, batch=10, gallery=Gallery(tmp_path, of))
    files = sorted(tmp_path.glob("*.safetensors"))
    held = len(Gallery(tmp_path, of, resume=True))
    assert held == plan.pictures()
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert len(Gallery(tmp_path, of, resume=True)) == held - 10
    assert not files[0].exists()
    assert len(Gallery(tmp_path, key(host, host, plan), resume=True)) == 0
    assert list(tmp_path.glob("*.safetensors")) == []


def test_without_resume_the_folder_starts_empty(tmp_path: Path) -> None:
    host = Scribe()
    plan = small_plan(host)
    collect(host, damaging(host), plan, gallery=Gallery(tmp_path, "a"))
    assert len(Gallery(tmp_path, "a")) == 0
    assert list(tmp_path.glob("*.safetensors")) == []


def test_looks_grow_and_keep_their_pictures() -> None:
    host = Scribe()
    last = small_plan(host, prompts=7, seeds=3)
    looks = [Plan.from_plain({**last.plain(), "look": k, "looks": 4}) for k in (1, 2, 3, 4)]
    assert looks[3].shots == last.shots
    assert looks[3].twin_shots == last.twin_shots
    for few, more in pairwise(looks):
        assert set(few.shots) < set(more.shots)
        assert set(few.twin_shots) <= set(more.twin_shots)
    for plan in looks:
        for row, twin in zip(plan.twins, plan.twin_shots, strict=True):
            assert (plan.shots[row].group, plan.shots[row].prompt) == (twin.group, twin.prompt)
        sizes = [len(plan.rows(group=g)) for g in range(len(plan.groups))]
        assert all(s > 0 for s in sizes)
    assert Plan.from_plain(looks[1].plain()) == looks[1]


def test_what_the_model_read_itself_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while reading, and over the looks of an audit that may stop early."""
    host = host_of("sd")
    plan = planned(host, Request(target=(Concept(name="star"),)), prompts_per_concept=2, seeds=1, steps=1, guidance=1.0)
    patch = Patch(base=host.fingerprint())
    whole = collect(host, patch, plan, [judge("own:4", plan.concepts, host)])
    read: list[int] = []

    def reading(self: OwnJudge, images: torch.Tensor) -> torch.Tensor:
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(len(images))
        return asked(self, images)

    asked, stop = OwnJudge.read, 2
    monkeypatch.setattr(OwnJudge, "read", reading)
    of = key(host, patch, plan)
    with pytest.raises(KeyboardInterrupt):
        collect(host, patch, plan, [judge("own:4", plan.concepts, host)], gallery=Gallery(tmp_path, of))
    stop = -1
    gallery = Gallery(tmp_path, of, resume=True)
    again = collect(host, patch, plan, [judge("own:4", plan.concepts, host)], gallery=gallery)
    different = torch.cat([whole.gallery[w] for w in ("before", "other")]).flatten(1).unique(dim=0)
    assert sum(read) == len(different)  # before and after are the same pictures here
    for name, measure in whole.measures.items():
        assert torch.equal(measure, again.measures[name]), name
    done = len(read)
    other = judge("own:5", plan.concepts, host)  # another budget is another reader
    collect(host, patch, plan, [other], gallery=gallery)
    assert len(read) > done
