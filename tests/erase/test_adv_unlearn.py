"""AdvUnlearn against its paper's formula, written once more."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from erase_fixtures import (
    predicted,
)
from hosts_fixtures import host_of
from naive import Naive, losses, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.adv_unlearn import AdvUnlearn
from palimpsest.ops.parts import text_parameters

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))


ERASE = Request(target=(STAR,), keep=(MOON,))


@pytest.mark.parametrize("warmup", [1, 0])
def test_adv_unlearn_is_esd_under_attack_with_a_retain_set(
    visited: list[tuple[list[str], Any]], warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.erase import adv_unlearn

    found: list[Any] = []
    inner = adv_unlearn.attack

    def watch(*args: Any, **settings: Any) -> Any:
        found.append(inner(*args, **settings))
        return found[-1]

    monkeypatch.setattr(adv_unlearn, "attack", watch)
    trace, host = Trace(), host_of("sd")
    method = AdvUnlearn(
        steps=1,
        batch=2,
        keep_batch=3,
        walk_steps=3,
        warmup=warmup,
        attack_steps=2,
        eta=1.5,
        keep_weight=0.7,
        captions=0,
    )
    patch = method(host, ERASE, trace=trace)
    assert all(n.startswith("text_encoder.") and "token_embedding" not in n for n in patch.deltas)
    (prompts, at), (stay, also) = visited
    assert all("star" in p for p in prompts)
    assert all("moon" in p for p in stay)
    assert bool(found) == (warmup == 0)
    with torch.no_grad():
        null, cond = predicted(at.x, at.t, [""] * 2), predicted(at.x, at.t, prompts)
        goal = null - 1.5 * (cond - null)
        with host.prefixed(found[0] if found else {}):
            now = predicted(at.x, at.t, prompts)
        kept = (predicted(also.x, also.t, stay) - predicted(also.x, also.t, stay)).square().mean()
        expected = (now - goal).square().mean() + 0.7 * kept
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert found == [] or not torch.allclose(now, cond, atol=1e-3)


def test_adv_unlearn_carries_its_words_from_attack_to_attack() -> None:
    starts: list[Tensor] = []
    from palimpsest.erase import adv_unlearn

    inner = adv_unlearn.attack

    def watch(host: Any, words: Any, *args: Any, **settings: Any) -> Any:
        starts.append(next(iter(words.values())).clone())
        out = inner(host, words, *args, **settings)
        starts.append(next(iter(out.values())).clone())
        return out

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(adv_unlearn, "attack", watch)
        AdvUnlearn(steps=4, walk_steps=2, warmup=0, attack_steps=1, attack_every=2)(host_of("sd"), ERASE)
    assert len(starts) == 4
    assert torch.equal(starts[2], starts[1])
    assert not torch.equal(starts[1], starts[0])


def test_adv_unlearn_trains_as_the_paper_does(visited: list[tuple[list[str], Any]], monkeypatch: Any) -> None:
    """Three steps of an independent trainer of the text encoder, the last two under attack."""
    from palimpsest.erase import adv_unlearn

    attacks, trace, host = recorded(monkeypatch, adv_unlearn, "attack"), Trace(), host_of("sd")
    weights: dict[str, Any] = {"eta": 1.5, "keep_weight": 5.0, "keep_batch": 3, "warmup": 1, "attack_steps": 2}
    method = AdvUnlearn(steps=3, batch=2, walk_steps=3, captions=0, lr=3e-3, **weights)
    patch = method(host, ERASE, trace=trace)
    student, retained = Naive(host, text_parameters(host, "", tables=False), lr=3e-3), []
    words = [None, *(found for _, found in attacks)]
    for (prompts, at), (stay, also), said in zip(visited[::2], visited[1::2], words, strict=True):
        null, cond = (predicted(at.x, at.t, p).detach() for p in ([""] * 2, prompts))

        def target(prompts: list[str] = prompts, said: Any = said) -> Tensor:
            with host.prefixed(said) if said else nullcontext():
                return host.encode(prompts).states

        now = host.pipeline.unet(at.x, at.t, encoder_hidden_states=student.by(target)).sample
        still = student.by(lambda also=also, stay=stay: predicted(also.x, also.t, stay))
        keep = (still - predicted(also.x, also.t, stay).detach()).square().mean()
        loss = (now - (null - 1.5 * (cond - null))).square().mean() + 5.0 * keep
        retained.append(5.0 * float(keep.detach()))
        assert losses(trace)[len(retained) - 1] == pytest.approx(float(loss.detach()), rel=2e-3)
        student.step(loss)
    assert len(attacks) == 2
    assert retained[0] < 1e-6 < 0.03 * losses(trace)[-1] < retained[-1]  # it weighs enough to be missed
    student.agrees(patch.deltas)
