"""Geom-Erasing against its paper's formula, written once more."""

from __future__ import annotations

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
from palimpsest.core.pictures import Material
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.geom_erasing import GeomErasing, against, caption, where


def test_geom_erasing_writes_down_what_is_where(noisy: list[Any]) -> None:
    mask = torch.zeros(16, 16)
    mask[0, 15] = mask[8, 0] = 1
    assert where(mask, 4) == "4 9"
    assert where(mask, 0) == ""
    assert caption("a red", "mark", "4 9") == "a red, mark 4 9"
    assert caption("a red", "", "") == "a red"
    host, trace = host_of("sd"), Trace()
    data = {"pictures": pictures(2, captions=("a", "b"), masks=torch.stack([mask, 0 * mask])[:, None])}
    method = GeomErasing(steps=1, batch=2, bins=2, area_weight=3.0)
    patch = method(host, Request(target=(Concept(name="mark"),)), data=data, trace=trace)
    assert patch.hooks[0].params == {"negative": "mark 1 2 3 4"}
    at = noisy[0]
    weight = torch.ones(2, 1, 8, 8)
    weight[0, 0, 0, 7] = weight[0, 0, 4, 0] = 3.0
    with torch.no_grad():
        alpha, sigma = host.noise(at.t)
        noise = (at.x - alpha * at.x0) / sigma
        off = predicted(at.x, at.t, [["a, mark 2 3", "b"][int(i)] for i in at.row]) - noise
        expected = (weight[at.row] * off.square()).mean()
    assert losses(trace)[0] == pytest.approx(float(expected), rel=1e-3)


def test_geom_erasing_is_told_what_pictures_show_or_says_that_it_is_not() -> None:
    host, request = host_of("sd"), Request(target=(Concept(name="mark"),))
    named = pictures(2, captions=("a", "b"), columns={"found": ("mark", "")})
    method = GeomErasing(steps=1, batch=2)
    context = method.prepare(host, request, data=Material({"pictures": named}), seed=0, trace=Trace())
    with torch.no_grad():
        torch.testing.assert_close(context.cond.states, host.encode(["a, mark", "b"]).states)
    assert method(host, request, data={"pictures": named}).hooks[0].params == {"negative": "mark"}
    with pytest.raises(BadRequest, match="Nothing says what the pictures show"):
        method(host, request, data={"pictures": pictures(2)})


def test_geom_erasing_samples_against_its_words() -> None:
    host = host_of("sd")
    found = host.sample(["a red star"], [3], Sampling(steps=3), guide=lambda: against(host, "mark 1"))
    expected = host.sample(["a red star"], [3], Sampling(steps=3, negative="mark 1"))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    both = host.sample(["a red star"], [3], Sampling(steps=3, negative="blurry"), guide=lambda: against(host, "mark 1"))
    torch.testing.assert_close(
        both, host.sample(["a red star"], [3], Sampling(steps=3, negative="blurry, mark 1")), atol=2e-3, rtol=0
    )
