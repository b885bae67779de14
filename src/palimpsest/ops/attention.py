"""Attention maps of a denoiser: keep them, see where they look, and find which of a prompt's tokens are a concept's.

A map is softmax(q k^T / sqrt(d)), shape (n, heads, pixels, tokens): how much each pixel reads each token. A host shows
them to a rule, layer by layer, and goes on with what the rule returns (`Denoiser.attending`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from palimpsest.core.host import Denoiser
from palimpsest.ops.prompts import up_to


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

    with host.attending(note, role):
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
