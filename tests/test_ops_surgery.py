"""Gradient surgery and saliency masks: their definitions, written naively."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.ops.saliency import marked, masked, packed, salient, shared
from palimpsest.ops.surgery import without_conflict


def draws(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_conflicts_are_projected_away_and_agreement_is_left() -> None:
    g, h = draws(0, (3, 4), (3, 4))
    h = h if float((g * h).sum()) < 0 else -h
    found = without_conflict({"a": g.clone(), "b": g.clone(), "c": g.clone()}, {"a": h, "b": -h})
    expected = g - (g * h).sum() / (h * h).sum() * h
    assert torch.allclose(found["a"], expected, atol=1e-6)
    assert abs(float((found["a"] * h).sum())) < 1e-5
    assert torch.equal(found["b"], g)
    assert torch.equal(found["c"], g)
    half = without_conflict({"a": g.clone()}, {"a": h}, strength=0.5)["a"]
    assert torch.allclose(half, (g + expected) / 2, atol=1e-6)


def test_nothing_to_conflict_with() -> None:
    (g,) = draws(1, (5,))
    assert torch.equal(without_conflict({"a": g.clone()}, {"a": torch.zeros(5)})["a"], g)


@pytest.mark.parametrize("among", ["model", "tensor"])
@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_largest_share_is_marked(among: str, seed: int, share: float) -> None:
    a, b = draws(seed, (7, 5), (13,))
    named = {"a": a, "b": 100 * b}
    found = salient(named, share, among=among)  # type: ignore[arg-type]
    assert {n: m.shape for n, m in found.items()} == {n: g.shape for n, g in named.items()}
    groups = [[n] for n in named] if among == "tensor" else [list(named)]
    for group in groups:
        sizes = torch.cat([named[n].abs().flatten() for n in group])
        mask = torch.cat([found[n].flatten() for n in group])
        count = round(share * len(sizes))
        expected = torch.zeros_like(mask)
        expected[sizes.argsort(descending=True)[:count]] = True
        assert torch.equal(mask, expected)


def test_ties_are_marked_together_and_zeros_never() -> None:
    g = torch.tensor([0.0, 0.0, -2.0, 2.0, 1.0, 0.0])
    assert salient({"g": g}, 1 / 6)["g"].tolist() == [False, False, True, True, False, False]
    assert salient({"g": g}, 1.0)["g"].tolist() == [False, False, True, True, True, False]
    assert not salient({"g": g}, 0.0)["g"].any()
    with pytest.raises(BadRequest, match=r"share is 1\.5"):
        salient({"g": g}, 1.5)


def test_half_precision_gradients_are_ranked() -> None:
    g = torch.tensor([0.1, -3.0, 2.0, 0.5], dtype=torch.bfloat16)
    assert salient({"g": g}, 0.5)["g"].tolist() == [False, True, True, False]


def test_masks_meet_and_act() -> None:
    one, two = torch.tensor([True, True, False]), torch.tensor([False, True, False])
    both = shared([{"a": one}, {"a": two}, {"a": one}])
    assert both["a"].tolist() == [False, True, False]
    assert masked({"a": torch.tensor([1.0, 2.0, 3.0])}, packed(both))["a"].tolist() == [0.0, 2.0, 0.0]
    assert marked(both.values()) == pytest.approx(1 / 3)


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_packed_masks_act_like_masks(shape: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=draws) < 0.5
    g = torch.randn(shape, generator=draws)
    bits = packed({"a": mask})
    assert bits["a"].dtype == torch.uint8
    assert len(bits["a"]) == -(-mask.numel() // 8)
    assert torch.equal(masked({"a": g.clone()}, bits)["a"], g * mask)
