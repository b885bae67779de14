"""Few-shot erasing against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from erase_fixtures import (
    pictures,
    predicted,
)
from hosts_fixtures import host_of
from naive import losses
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.erase.few_shot import FewShot

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))


def test_few_shot_ascends_the_denoising_loss_of_given_pictures(noisy: list[Any]) -> None:
    host, trace = host_of("sd"), Trace()
    photos = pictures(3)
    only = Concept(name="star", prompts=("star",), kind="style")
    method = FewShot(steps=1, batch=3)
    import palimpsest.erase.few_shot as module

    said: list[list[str]] = []
    inner = module.encoded
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(module, "encoded", lambda h, p, r: (said.append([p[int(i)] for i in r]), inner(h, p, r))[1])
        method(host, Request(target=(only,)), data={"references": photos}, trace=trace)
    at = noisy[0]
    with torch.no_grad():
        x0 = host.latents(photos.pixels())
        assert all(any(torch.allclose(a, b, atol=1e-5) for b in x0) for a in at.x0)
        alpha, sigma = host.noise(at.t)
        noise = (at.x - alpha * at.x0) / sigma
        expected = -(predicted(at.x, at.t, said[0]) - noise).square().mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)
    assert losses(trace)[0] < 0


def test_few_shot_trains_what_it_says_and_knows_whose_picture_is_whose() -> None:
    host = host_of("sd")
    choices: dict[str, Any] = {
        "mlp": lambda n: "mlp" in n,
        "attention": lambda n: "self_attn" in n,
        "mlp-final-attention": lambda n: "mlp" in n or "layers.2.self_attn" in n,
    }
    for train, inside in choices.items():
        names = FewShot(train=train).trains(host)  # type: ignore[arg-type]
        blocks = [f"{b}.{p}" for b, m in host.parts("text_block").items() for p, _ in m.named_parameters()]
        assert names == sorted(n for n in blocks if inside(n))
    for labels, words in (([0, 2], "label 2"), ([], "place in it")):
        data = {"references": replace(pictures(2), labels=torch.tensor(labels, dtype=torch.int64))}
        with pytest.raises(BadRequest, match=words):
            FewShot(steps=1)(host, Request(target=(STAR, MOON)), data=data)
