"""MACE against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erase_fixtures import (
    layers,
)
from hosts_fixtures import host_of
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.mace import MACE
from palimpsest.ops.attention import captured
from palimpsest.ops.captions import captions

STAR, MOON, RING = Concept(name="star", prompts=("a red star on blue",)), Concept(name="moon"), Concept(name="ring")


TEMPLATES = ("an image of {}", "a photo of {}", "a picture of {}", "a painting of {}", "a drawing of {}")


@pytest.fixture(scope="module")
def host() -> Any:
    return host_of("sd")


def common_tokens(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("others", [(), ("tree", "box")])
def test_mace_refines_the_words_around_the_concept(host: Any, others: tuple[str, ...]) -> None:
    """With LoRAs that never move, what is left is the refinement: solved here with tokens from the tokenizer."""
    request = Request(target=(STAR, *(Concept(name=n) for n in others)), keep=(RING,), toward=(MOON,))
    weights = {"ridge": 0.8, "keep_weight": 0.6, "caption_weight": 0.3}
    method = MACE(steps=1, lr=0.0, walk_steps=2, pictures=2, captions=3 * len(others), **weights)
    patch = method(host, request)
    texts = [("a red star on blue", "star")]
    texts += [(t.format(n), n) for n in ("star", *others) for t in ("{}", *TEMPLATES)]
    tokenizer, d = host.pipeline.tokenizer, next(iter(layers(host).values())).shape[1]
    e, v = [], []
    for text, name in texts:
        old, new = tokenizer(text).input_ids, tokenizer(text.replace(name, "moon")).input_ids
        start = common_tokens(old, new)
        behind = common_tokens(old[::-1], new[::-1])
        a, b = host.encode([text]).states[0].double(), host.encode([text.replace(name, "moon")]).states[0].double()
        m = min(len(a) - (len(old) - behind), len(b) - (len(new) - behind))
        e += [a[:start], a[len(old) - behind :][:m]]
        v += [b[:start], b[len(new) - behind :][:m]]
    keep = host.encode(["ring", *(t.format("ring") for t in TEMPLATES)]).states.flatten(0, 1).double()
    both, goal = torch.cat(e), torch.cat(v)
    stays = 0.6 * len(request.target) * keep.T @ keep + 0.8 * torch.eye(d).double()
    for text in captions(6, ["star", *others]) if others else []:
        said = host.encode([text]).states[0].double()
        stays += 0.3 * len(request.target) * said.T @ said
    right = both.T @ both + stays
    for name, w in layers(host).items():
        left = w @ goal.T @ both + w @ stays
        expected = left @ torch.linalg.inv(right) - w
        found = patch.deltas[name].dense(w.shape).double()
        assert (found - expected).norm() < 1e-3 * expected.norm()


def test_maces_first_loss_is_the_attention_inside_the_mask(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    loss = MACE.loss

    def watched(self: Any, step: Any) -> Tensor:
        inputs: list[Any] = []
        denoise = step.host.denoise
        step.host.denoise = lambda x, t, cond: inputs.append((x, t, cond)) or denoise(x, t, cond)
        try:
            value = loss(self, step)
        finally:
            del step.host.denoise
        x, t, cond = inputs[0]
        draws = step.generator()
        picture = torch.randint(len(step.data.x0), (step.batch,), generator=draws)
        text = torch.randint(len(step.data.cond), (step.batch,), generator=draws)
        with torch.no_grad(), captured(step.host) as maps:
            denoise(x, t, cond)
        total = 0.0
        for (m,) in maps.values():
            side = int(m.shape[2] ** 0.5)
            for i in range(step.batch):
                mask, squares = step.data.mask[picture[i]], 0.0
                for p in range(m.shape[2]):
                    at = (p // side * mask.shape[0] // side, p % side * mask.shape[1] // side)
                    if bool(mask[at]):
                        squares += float(m[i, :, p][:, step.data.tokens[text[i]]].square().sum())
                total += squares**0.5 / step.batch
        seen.append((float(value.detach()), total))
        return value

    monkeypatch.setattr(MACE, "loss", watched)
    MACE(steps=1, batch=3, walk_steps=2, pictures=2)(host, Request(target=(STAR,)))
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)


def test_mace_knows_where_the_concepts_tokens_are(host: Any) -> None:
    scene = MACE(walk_steps=2, pictures=2)._scene(host, STAR, 0)
    ids = host.pipeline.tokenizer("a red star on blue").input_ids
    length = scene.cond.states.shape[1]
    place = ids.index(host.pipeline.tokenizer("star").input_ids[1])
    assert scene.tokens[0].nonzero().squeeze(1).tolist() == [place, *range(len(ids) - 1, length)]
    assert scene.mask.any(-1).any(-1).all()
    assert not scene.mask.all()
    style = MACE(walk_steps=2, pictures=2)._scene(host, replace(STAR, kind="style"), 0)
    assert style.mask.all()


def test_mace_takes_many_concepts_and_resumes(host: Any, tmp_path: Any) -> None:
    request = Request(target=(STAR, MOON, RING))
    method = MACE(steps=2, walk_steps=2, pictures=2, lr=1e-2)
    whole = method(host, request)
    method(host, request, trace=Trace(folder=tmp_path))
    told = Trace(folder=tmp_path, resume=True)
    again = method(host, request, trace=told)
    assert [e[0] for e in told.log if e[1] == "loss"] == [0, 1, 2, 3, 4, 5]
    for name, d in whole.deltas.items():
        assert torch.equal(d.dense(layers(host)[name].shape), again.deltas[name].dense(layers(host)[name].shape))
