"""Homoglyph unlearning against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of
from naive import Naive, losses
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.erase.homoglyphs import Homoglyphs
from palimpsest.ops.parts import text_parameters
from palimpsest.train.randomness import generator

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))


def test_homoglyphs_match_the_students_states_to_the_teachers() -> None:
    host, trace = host_of("sd"), Trace()
    request = Request(target=(STAR,), keep=(MOON,), toward=(Concept(name="ring"),))
    method = Homoglyphs(steps=12, lr=3e-3, batch=500, captions=4, weight=2.0)
    patch = method(host, request, trace=trace)
    context = method.prepare(host, request, data=None, seed=0, trace=Trace())
    assert "a red star" in context.texts[0]
    index = context.texts[0].index("a red star")
    torch.testing.assert_close(context.read_as[0].states[index], host.encode(["a red ring"]).states[0])
    assert not any("star" in text for text in context.staying)
    assert "a moon" in context.staying
    with torch.no_grad():
        now = host.encode(context.texts[0]).states
        expected = 2.0 * (1 - torch.cosine_similarity(now, context.read_as[0].states, dim=-1).mean())
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert losses(trace)[-1] < 0.8 * losses(trace)[0]
    assert all(n.startswith("text_encoder.") for n in patch.deltas)


def test_a_target_of_one_character_is_put_into_texts() -> None:
    method = Homoglyphs(captions=3)
    request = Request(target=(Concept(name="ο"),), keep=(MOON,), toward=(Concept(name="o"),))
    context = method.prepare(host_of("sd"), request, data=None, seed=0, trace=Trace())
    assert "a mοon" in context.texts[0]
    torch.testing.assert_close(
        context.read_as[0].states[context.texts[0].index("a mοon")], host_of("sd").encode(["a moon"]).states[0]
    )
    with pytest.raises(BadRequest, match="looks like"):
        method(host_of("sd"), Request(target=(Concept(name="ο"),), keep=(MOON,)))


def test_homoglyphs_train_as_the_paper_does() -> None:
    """Three steps of an independent trainer: from the second on, what stays costs something."""
    host, trace = host_of("sd"), Trace()
    request = Request(target=(STAR,), keep=(MOON,), toward=(Concept(name="ring"),))
    method = Homoglyphs(steps=3, lr=3e-3, batch=4, captions=4, weight=2.0)
    patch = method(host, request, trace=trace, seed=3)
    context = method.prepare(host, request, data=None, seed=3, trace=Trace())  # type: ignore[arg-type]
    rings = [" ".join(text.replace("star", "ring").split()) for text in context.texts[0]]
    student, stayed = Naive(host, text_parameters(host, ""), lr=3e-3), []
    for k in range(3):

        def apart(texts: list[str], answers: list[str], what: object, k: int = k) -> Tensor:
            rows = torch.randperm(len(texts), generator=generator(3, "step", k, what))[:4].tolist()
            now = student.by(lambda: host.encode([texts[i] for i in rows]).states)
            with torch.no_grad():
                then = host.encode([answers[i] for i in rows]).states
            return 1 - torch.cosine_similarity(now, then, dim=-1).mean()

        stays = apart(context.staying, context.staying, "stays")
        loss = stays + 2.0 * apart(context.texts[0], rings, 0)
        stayed.append(float(stays.detach()))
        assert losses(trace)[k] == pytest.approx(float(loss.detach()), rel=1e-3)
        student.step(loss)
    assert stayed[0] < 1e-6 < 0.03 * losses(trace)[-1] < stayed[-1]  # it weighs enough to be missed
    student.agrees(patch.deltas)
