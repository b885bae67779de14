"""Modular LoRA against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erase_fixtures import (
    predicted,
)
from hosts_fixtures import host_of
from naive import losses
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.modular_lora import ModularLoRA, after_benign
from palimpsest.ops.drawn import Drawn
from palimpsest.train.benign import Benign, Captioned

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))


ERASE = Request(target=(STAR,), keep=(MOON,))


def test_modular_lora_is_esd_in_low_rank_and_adds_up(visited: list[tuple[list[str], Any]]) -> None:
    host, trace = host_of("sd"), Trace()
    safety = ModularLoRA(steps=2, batch=2, walk_steps=3, rank=2, eta=0.5, lr=1e-2)(host, ERASE, trace=trace)
    prompts, at = visited[0]
    with torch.no_grad():
        null, cond = predicted(at.x, at.t, [""] * 2), predicted(at.x, at.t, prompts)
        expected = (cond - (null - 0.5 * (cond - null))).square().mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert all(d.rank() == 2 for d in safety.deltas.values())
    before = host.fingerprint()
    captioned = Captioned(prompts=["a moon"], pictures=Drawn(row=torch.zeros(2, dtype=torch.int64), x0=at.x))
    tuning = Benign(steps=2, lr=1e-2, rank=2, batch=2)
    found = after_benign(host, safety, captioned, tuning=tuning)
    assert host.fingerprint() == before
    name = next(iter(safety.deltas))
    shape = dict(host.root.named_parameters())[name].shape
    alone, beside = found["alone"].deltas[name].dense(shape), found["beside"].deltas[name].dense(shape)
    torch.testing.assert_close(beside, safety.deltas[name].dense(shape) + alone, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found["on top"].deltas[name].dense(shape), beside, atol=1e-5)
    with safety.applied(host):
        later = tuning.tuned(host, ERASE, captioned)
    with found["on top"].applied(host):
        once = dict(host.root.named_parameters())[name].detach().clone()
    with safety.applied(host), later.applied(host):
        torch.testing.assert_close(dict(host.root.named_parameters())[name], once, atol=1e-6, rtol=1e-4)
