"""What an audit takes in memory is counted before it begins, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evidence_fixtures import Scribe, request, small_plan
from hosts_fixtures import fresh_host
from palimpsest import machine
from palimpsest.core import catalog
from palimpsest.core.errors import TooLarge
from palimpsest.core.fingerprint import fingerprint
from palimpsest.probes import memory
from palimpsest.probes.memory import Taken, refuse_too_large, taken
from palimpsest.probes.plan import Group, Plan

NEED = Taken(shown=1_000, pictures=3 * 2**30, hung=2**30, drawn=4, drawing=2**30, training=5 * 2**30)


def planned(pictures: int = 3, size: int = 32) -> Plan:
    prompts = tuple(f"a star {i}" for i in range(pictures))
    group = Group(role="target", concept=request("star").target[0], prompts=prompts, seeds=1)
    return Plan(request=request("star"), groups=(group,), steps=2, guidance=7.5, size=size)


def test_pictures_are_counted_byte_for_byte() -> None:
    host = fresh_host("sd")
    plan = planned(5)
    need = taken(host, plan)
    assert need is not None
    assert (need.shown, need.pictures, need.hung) == (15, 15 * 3 * 32 * 32, 5 * 3 * 32 * 32)
    assert (need.drawing, need.training) == (0, 0)  # of a small network nobody asks
    assert need.told().startswith("Memory beside the weights: 0 MiB for 15 pictures")
    whole = taken(host, plan, oracle=True)
    assert whole is not None
    assert whole.shown == 20
    assert taken(Scribe(), small_plan(Scribe())) is None  # it does not say how large its pictures are


def test_steps_are_counted_without_being_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 0)
    host = fresh_host("sd")
    before, plan = fingerprint(host.root), planned(8)
    esd = catalog.load("erase/esd")

    def need(batch: int, method: Any = None) -> Taken:
        found = taken(host, plan, method=method, batch=batch)
        assert found is not None
        return found

    thin, many = need(1, esd(rank=1)), need(8, esd())
    assert 0 < 4 * thin.drawing < many.drawing < 16 * thin.drawing
    assert 0 < thin.training < many.training
    assert "to draw 8 at once, about" in many.told()
    assert fingerprint(host.root) == before
    assert all(p.grad is None and not p.requires_grad for p in host.root.parameters())


@pytest.mark.parametrize(
    ("need", "free", "words"),
    [
        (NEED, 3.5, "1,000 pictures take 4.0 GiB while they are put in order, and 3.5 GiB are free"),
        (replace(NEED, pictures=0, hung=0), 4, "a step of training takes about 5.0 GiB .* --checkpointing"),
        (replace(NEED, pictures=0, hung=0, training=0), 0.5, "drawing 4 pictures at once takes about 1.0 GiB"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_else(
    need: Taken, free: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for enough in (10, None):  # None: nobody can tell
        monkeypatch.setattr(machine, "available", lambda device="cpu", n=enough: None if n is None else n * 2**30)
        refuse_too_large(Scribe(), need)
    monkeypatch.setattr(machine, "available", lambda device="cpu": int(free * 2**30))
    refuse_too_large(Scribe(), None)
    with pytest.raises(TooLarge, match=words):
        refuse_too_large(Scribe(), need)
