"""Attention maps of a denoiser: read them, rewrite them, and find which of a prompt's tokens are a concept's.

A map is softmax(q k^T / sqrt(d)), shape (n, heads, pixels, tokens): how much each pixel reads each token. While a rule
is attached, every layer of a role computes its map once, shows it to the rule and mixes the values with what the rule
returns. Layers are found by role; nothing stays on the model afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Denoiser
from palimpsest.ops.prompts import up_to

Rule = Callable[[str, Tensor], Tensor]
"""(layer's name, maps (n, heads, pixels, tokens)) -> the maps that the layer goes on with, same shape."""


@contextmanager
def rewritten(host: Denoiser, rule: Rule, *, role: str = "cross_attention") -> Iterator[None]:
    """Every attention layer of a role hands its maps to the rule until the context ends; gradients flow through.

    Raises:
        Unsupported: the model has no such layers, or they attend to text and image jointly.

    Cost: the maps exist as tensors, pixels x tokens for each head, where a fused kernel never forms them.
    """
    layers = host.parts(role)
    joint = set(host.parts("cross_attention")) & set(host.parts("self_attention"))
    if not layers or joint:
        raise Unsupported(f"{host.name} has no layers in which the picture alone reads the {role} states.")
    old = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            _process(layer, _Shown(name, rule))
        yield
    finally:
        for name, layer in layers.items():
            _process(layer, old[name])


@contextmanager
def captured(
    host: Denoiser, tokens: Sequence[int] | slice = slice(None), *, role: str = "cross_attention"
) -> Iterator[dict[str, list[Tensor]]]:
    """The maps of chosen tokens: by layer, one (n, heads, pixels, tokens) for each forward, in order.

    Example:
        >>> with captured(host, tokens=[2]) as maps:                   # doctest: +SKIP
        ...     host.denoise(x, t, host.encode(["a star"]))
    """
    found: dict[str, list[Tensor]] = {name: [] for name in host.parts(role)}

    def note(name: str, maps: Tensor) -> Tensor:
        found[name].append(maps[..., tokens])
        return maps

    with rewritten(host, note, role=role):
        yield found


def spans(host: Denoiser, prompts: Sequence[str], names: Sequence[str]) -> list[tuple[int, int]]:
    """First token and one past the last token of each name's first occurrence in its prompt.

    Counted from the encoder's own lengths, so no tokenizer is needed: a word's tokens do not depend on what follows.
    A prompt that does not hold its name is taken for the name as a whole.

    Cost: one batched text forward of 2 n texts, cut at their end tokens.
    """
    ends = [up_to(p, n) for p, n in zip(prompts, names, strict=True)]
    starts = [
        end[: len(end) - len(n.strip())] if end.casefold().endswith(n.strip().casefold()) else ""
        for end, n in zip(ends, names, strict=True)
    ]
    with torch.no_grad():
        lengths = host.tokens([text.rstrip() for pair in zip(starts, ends, strict=True) for text in pair]).lengths
    found = (lengths - 1).tolist()  # the end token stands where the next word would
    return list(zip(found[::2], found[1::2], strict=True))


def grid(pixels: int, like: Tensor) -> tuple[int, int]:
    """Height and width of a map's pixels, for latents (n, c, h, w) of which a layer sees every k-th row and column."""
    h, w = like.shape[-2:]
    height = round((pixels * h / w) ** 0.5)
    return height, pixels // height


def heat(maps: Sequence[Tensor], like: Tensor) -> Tensor:
    """(n, h, w) in the size of the latents: the chosen tokens' maps, over all heads, tokens and layers, largest 1."""
    total: Tensor | None = None
    for part in maps:
        flat = part.float().sum(-1).mean(1)  # (n, pixels)
        shaped = flat.view(len(flat), 1, *grid(flat.shape[1], like))
        up = nn.functional.interpolate(shaped, size=like.shape[-2:], mode="bilinear")[:, 0]
        total = up if total is None else total + up
    if total is None:
        raise ValueError("there is no map")
    return total / total.flatten(1).max(1).values.clamp(min=1e-12)[:, None, None]


class _Shown:
    """A diffusers attention processor that shows its map to a rule; otherwise the default one's function."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.name, self.rule = name, rule

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            states = attn.norm_encoder_hidden_states(states)
        heads = attn.heads

        def split(value: Tensor) -> Tensor:  # (n, length, heads * d) -> (n, heads, length, d)
            return value.unflatten(-1, (heads, -1)).transpose(1, 2)

        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(states)), split(attn.to_v(states))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, states.shape[1], len(states))
            scores = scores + mask.view(len(states), heads, -1, mask.shape[-1])
        maps = self.rule(self.name, scores.softmax(-1))
        mixed = (maps @ value).transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](mixed))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _process(layer: Any, processor: Any) -> None:
    """Without `set_processor`, which would drop a processor that has weights of its own."""
    if isinstance(processor, nn.Module):
        layer.__dict__.pop("processor", None)
        layer._modules["processor"] = processor
    else:
        layer._modules.pop("processor", None)
        layer.processor = processor
