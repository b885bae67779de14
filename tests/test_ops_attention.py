"""Attention taps and rewrites on a small random pipeline: maps by hand, no change unasked, no traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of, largest
from palimpsest.core.errors import Unsupported
from palimpsest.core.fingerprint import hook_count
from palimpsest.ops.attention import captured, grid, heat, spans


@pytest.fixture(scope="module")
def at() -> tuple[Any, Tensor, Tensor, Any]:
    host = host_of("sd")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return host, x, torch.tensor([300, 700]), host.encode(["a red star", "moon"])


def by_hand(host: Any, x: Tensor, t: Tensor, cond: Any) -> dict[str, Tensor]:
    """Maps from the outputs of the projections, head by head."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, layer in host.parts("cross_attention").items():
        for part in ("to_q", "to_k"):
            note = lambda m, a, out, key=f"{name}.{part}": seen.__setitem__(key, out)  # noqa: E731
            handles.append(getattr(layer, part).register_forward_hook(note))
    host.denoise(x, t, cond)
    for handle in handles:
        handle.remove()
    maps = {}
    for name, layer in host.parts("cross_attention").items():
        q, k = seen[f"{name}.to_q"], seen[f"{name}.to_k"]
        d = q.shape[-1] // layer.heads
        heads = [slice(h * d, (h + 1) * d) for h in range(layer.heads)]
        maps[name] = torch.stack([(q[..., h] @ k[..., h].mT / d**0.5).softmax(-1) for h in heads], 1)
    return maps


@torch.no_grad()
def test_captured_maps_are_softmax_of_queries_and_keys(at: Any) -> None:
    host, x, t, cond = at
    expected = by_hand(host, x, t, cond)
    with captured(host) as maps:
        host.denoise(x, t, cond)
    assert set(maps) == set(expected)
    for name, found in maps.items():
        assert len(found) == 1
        torch.testing.assert_close(found[0], expected[name], atol=1e-5, rtol=1e-4)
    with captured(host, [1, 3]) as some:
        host.denoise(x, t, cond)
        host.denoise(x, t, cond)
    for name, found in some.items():
        assert len(found) == 2
        torch.testing.assert_close(found[1], expected[name][..., [1, 3]], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("role", ["cross_attention", "self_attention"])
def test_a_rule_that_changes_nothing_changes_nothing(at: Any, role: str) -> None:
    host, x, t, cond = at
    plain = host.denoise(x, t, cond)
    with host.attending(lambda name, maps: maps, role):
        shown = host.denoise(x, t, cond)
    assert largest(plain, shown) < 1e-4
    with host.attending(lambda name, maps: torch.full_like(maps, 1 / maps.shape[-1]), role):
        assert largest(plain, host.denoise(x, t, cond)) > 1e-2


@torch.no_grad()
def test_attending_to_one_token_only_makes_the_others_silent(at: Any) -> None:
    host, x, t, cond = at

    def first_only(name: str, maps: Tensor) -> Tensor:
        return torch.eye(maps.shape[-1])[0].expand_as(maps)

    other = host.encode(["moon"]).repeat(2)
    with host.attending(first_only, "cross_attention"):  # the start token's state is the same for every prompt
        assert largest(host.denoise(x, t, cond), host.denoise(x, t, other)) < 1e-5


def test_gradients_reach_the_keys(at: Any) -> None:
    host, x, t, cond = at
    states = cond.states.clone().requires_grad_(True)
    found: list[Tensor] = []

    def note(name: str, maps: Tensor) -> Tensor:
        found.append(maps[..., 1].sum())
        return maps

    with host.attending(note, "cross_attention"):
        host.predict(x, t, type(cond)(states=states, lengths=cond.lengths))
    torch.stack(found).sum().backward()
    assert states.grad is not None
    assert float(states.grad[:, 1].abs().max()) > 0


def test_nothing_stays_behind_even_after_an_error(at: Any) -> None:
    host, x, t, cond = at
    before = {name: layer.processor for name, layer in host.parts("cross_attention").items()}

    def broken(name: str, maps: Tensor) -> Tensor:
        raise RuntimeError("the rule broke")

    with pytest.raises(RuntimeError, match="broke"), host.attending(broken, "cross_attention"):
        host.denoise(x, t, cond)
    assert {name: layer.processor for name, layer in host.parts("cross_attention").items()} == before
    assert hook_count(host.root) == 0


def test_joint_attention_is_refused_by_name() -> None:
    host = host_of("sd3")
    with pytest.raises(Unsupported, match=host.name), captured(host):
        pass


def test_spans_are_the_tokenizers(at: Any) -> None:
    host = at[0]
    tokenizer = host.pipeline.tokenizer
    texts, names = ["a red star on blue", "Moon", "the moonlit moon"], ["star", "moon", "moon"]
    for text, name, (start, end) in zip(texts, names, spans(host, texts, names), strict=True):
        ids, own = tokenizer(text).input_ids, tokenizer(name).input_ids[1:-1]
        if text != "Moon":
            assert ids[start:end] == own
        assert end - start == len(tokenizer(text[: len(name)] if text == "Moon" else name).input_ids) - 2
    assert spans(host, ["a shape"], ["star"]) == [(1, len(tokenizer("a shape").input_ids) - 1)]


def test_grids_and_heat() -> None:
    like = torch.zeros(1, 4, 8, 12)
    assert grid(96, like) == (8, 12)
    assert grid(24, like) == (4, 6)
    maps = torch.zeros(1, 2, 24, 1)
    maps[0, :, 7] = 0.25  # row 1, column 1 of 4 x 6
    found = heat([maps], like)
    assert found.shape == (1, 8, 12)
    assert float(found.max()) == pytest.approx(1.0)
    assert divmod(int(found[0].flatten().argmax()), 12)[0] in (2, 3)
