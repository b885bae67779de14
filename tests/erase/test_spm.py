"""SPM against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from erase_fixtures import (
    _prompts_of,
    eps,
    first_loss,
    watch,
)
from hosts_fixtures import STEPS, fresh_host, host_of, largest
from naive import Naive, losses, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import WrongBase
from palimpsest.core.host import Cond
from palimpsest.core.patch import Hook, Patch, compose
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.spm import SPM
from palimpsest.ops.parts import transformers
from palimpsest.ops.prompts import kept
from palimpsest.train.randomness import generator
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = Concept(name="star", prompts=("a red star on blue",)), Concept(name="moon"), Concept(name="ring")


@pytest.fixture(scope="module")
def host() -> Any:
    return host_of("sd")


QUICK: dict[str, Any] = {"steps": 1, "batch": 2, "walk_steps": 3, "guidance": 2.0}


@pytest.mark.parametrize("keep", [(), (RING,)])
def test_spms_first_loss_is_the_papers(host: Any, monkeypatch: pytest.MonkeyPatch, keep: Any) -> None:
    """The student still is the teacher, so the anchors cost nothing and the erasing part is a known difference."""
    seen, trace = watch(monkeypatch), Trace()
    SPM(**QUICK, eta=1.5)(host, Request(target=(STAR,), keep=keep), trace=trace)
    x, t, row = seen[0]
    asked = _prompts_of(host, STAR)
    c, n = (
        eps(host, x, t, host.encode([asked[int(i)] for i in row]).states),
        eps(host, x, t, host.encode(["", ""]).states),
    )
    assert first_loss(trace) == pytest.approx(float((c - (n - 1.5 * (c - n))).square().mean()), rel=1e-3)


@pytest.fixture(scope="module")
def membranes(host: Any) -> tuple[Patch, Patch]:
    """The same membranes behind gates and as a plain LoRA, large enough to be seen."""
    settings: dict[str, Any] = {"steps": 3, "walk_steps": 3, "lr": 0.05, "guidance": 2.0}
    request = Request(target=(STAR,))
    return SPM(**settings)(host, request), SPM(**settings, transport=False)(host, request)


@torch.no_grad()
def test_a_gate_is_open_for_the_concepts_name_and_its_own_for_each_row(host: Any, membranes: Any) -> None:
    gated, lora = membranes
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([400, 400, 400])
    with gated.applied(host):
        found = host.denoise(x, t, host.encode(["a Star", "moon", "ring"]))
    name, rows = host.encode(["star"]).states.flatten(), host.encode(["a Star", "moon", "ring"])
    for i in range(3):
        gate = 1.0 if i == 0 else float(torch.cosine_similarity(rows.states[i].flatten(), name, 0).clamp(0, 1))
        with lora.scaled(gate).applied(host):
            alone = host.denoise(x[i : i + 1], t[:1], rows[i : i + 1])
        assert largest(found[i : i + 1], alone) < 1e-3
        assert largest(found[i : i + 1], host.denoise(x[i : i + 1], t[:1], rows[i : i + 1])) > 5e-3


@torch.no_grad()
def test_gates_know_a_prompts_words_whenever_it_was_encoded(host: Any, membranes: Any) -> None:
    gated, lora = membranes
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([400])
    before = host.encode(["moon and star"])
    with lora.applied(host):
        full = host.denoise(x, t, before)
    with gated.applied(host):
        assert largest(host.denoise(x, t, before), full) < 1e-4
        unknown = host.denoise(x, t, replace(before, texts=()))
    assert largest(unknown, full) > 1e-4  # by its states alone, the gate is half open


def test_membranes_of_several_concepts_have_their_own_gates(host: Any) -> None:
    both = SPM(steps=2, walk_steps=3, lr=0.05)(host, Request(target=(STAR, MOON)))
    alone = SPM(steps=2, walk_steps=3, lr=0.05)(host, Request(target=(MOON,)))
    only_moon = Hook(id="erase/spm", params={"names": ["moon"]}, tensors={
        "0|" + k.split("|", 1)[1]: v for k, v in both.hooks[0].tensors.items() if k.startswith("1|")
    })  # fmt: skip
    how = Sampling(steps=STEPS, size=16)
    picture = host.sample(["a moon"], [0], how)
    with Patch(base=both.base, hooks=(only_moon,)).applied(host):
        one = host.sample(["a moon"], [0], Sampling(steps=STEPS, size=16))
    with alone.applied(host):
        assert (
            largest(one, host.sample(["a moon"], [0], Sampling(steps=STEPS, size=16))) < 1e-4
        )  # seeds are the concept's own
    with both.applied(host):
        assert (
            largest(one, host.sample(["a moon"], [0], Sampling(steps=STEPS, size=16))) > 1e-4
        )  # star's membrane leaks through
    assert torch.equal(picture, host.sample(["a moon"], [0], Sampling(steps=STEPS, size=16)))


@torch.no_grad()
def test_membranes_go_onto_another_model_and_leave_nothing(host: Any, membranes: Any) -> None:
    gated, _ = membranes
    other = fresh_host("sd")
    for p in other.root.get_submodule("unet").parameters():
        p.add_(0.01)
    with pytest.raises(WrongBase), gated.applied(other):
        pass
    before = other.sample(["a star"], [0], Sampling(steps=STEPS, size=16))
    with gated.applied(other, force=True):
        assert largest(before, other.sample(["a star"], [0], Sampling(steps=STEPS, size=16))) > 1e-3
    assert torch.equal(before, other.sample(["a star"], [0], Sampling(steps=STEPS, size=16)))
    twice = compose(gated, gated)
    with twice.applied(host):
        assert "encode" not in vars(host)
    with pytest.raises(WrongBase, match="membrane"), gated.applied(fresh_host("flux"), force=True):
        pass


def test_spm_trains_as_the_paper_does(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of an independent trainer: from the second on, anchors cost something."""
    walked, chosen = recorded(monkeypatch, KeptWalk, "points"), recorded(monkeypatch, SPM, "_anchors")
    trace, settings = Trace(), {**QUICK, "steps": 3, "lr": 0.02}
    method = SPM(**settings, eta=1.5, anchoring=4.0, anchors=3, transport=False)
    patch = method(host, Request(target=(STAR,), keep=(RING, MOON)), trace=trace, seed=2)
    asked, stays = _prompts_of(host, STAR), kept(Request(target=(STAR,), keep=(RING, MOON)))
    own_seed = generator(2, "membrane", "star").initial_seed()
    student = Naive(host, transformers(host, ""), lr=0.02, rank=1, clip=1.0, seed=own_seed)
    anchored = []
    for (_, at), (_, anchors) in zip(walked, chosen, strict=True):
        prompts, pairs = of(asked, at), torch.arange(3) % 2  # three anchors at two points
        null, cond = old(host, at.x, at.t, ["", ""]), old(host, at.x, at.t, prompts)
        loss = mse_loss(own(host, student.net, at.x, at.t, prompts), null - 1.5 * (cond - null))
        assert all(any(torch.equal(a, b) for b in host.encode(stays).states) for a in anchors.states)
        x, t = at.x[pairs], at.t[pairs]
        was = eps(host, x, t, anchors.states)
        off = mse_loss(student.net(x, t, encoder_hidden_states=anchors.states).sample, was)
        anchored.append(4.0 * float(off.detach()))
        loss = loss + 4.0 * off
        assert losses(trace)[len(anchored) - 1] == pytest.approx(float(loss.detach()), rel=1e-3)
        student.step(loss)
    assert anchored[0] < 1e-6 < 0.03 * losses(trace)[-1] < anchored[-1]  # it weighs enough to be missed
    student.agrees(patch.deltas)


def test_spms_anchors_are_kept_prompts_far_ones_first_or_directions_at_random(host: Any) -> None:
    cond = host.encode(["star"])
    stays = Cond.cat([cond, host.encode(["moon", "two houses, one blue"])])
    drawn = SPM(anchors=6000)._anchors(cond, stays, torch.Generator().manual_seed(0))
    away = 1 - torch.cosine_similarity(stays.states.flatten(1), cond.states.flatten()[None])
    counts = torch.stack([(drawn.states == s).flatten(1).all(1).sum() for s in stays.states])
    assert int(counts[0]) <= 6  # the concept itself is no anchor
    torch.testing.assert_close(counts / 6000, away / away.sum(), atol=0.03, rtol=0)
    drawn = SPM(anchors=300)._anchors(cond, None, torch.Generator().manual_seed(0))
    size = drawn.states.flatten(1).norm(dim=1) / cond.states.norm()
    assert 0.8 <= float(size.min()) < 0.83 < 1.17 < float(size.max()) <= 1.2 + 1e-5
    assert drawn.states.shape == (300, *cond.states.shape[1:])
