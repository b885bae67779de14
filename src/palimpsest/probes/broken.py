"""Which pictures are no pictures any more: one colour, noise, or nearly the same as another prompt's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("fine", "one colour", "noise", "same as another")
_FLAT = 4.0  # grey levels of deviation below which a picture is one colour
_ALIKE = 5.0  # grey levels between two small copies below which two prompts gave the same picture
_BLOCK = 512  # pictures that are floats at once, and rows of the matrix of all pairs
_NOISE = 0.25  # correlation of neighbouring pixels below which a picture is noise; drawings and photographs exceed 0.5


def kinds(pictures: Tensor, prompts: Tensor) -> Tensor:
    """(n,) int64 index into `KINDS` for pictures (n, 3, H, W) uint8 and the number of each one's prompt (n,)."""
    found = torch.zeros(len(pictures), dtype=torch.long)
    blocks = [slice(i, i + _BLOCK) for i in range(0, len(pictures), _BLOCK)]
    small = torch.cat([F.interpolate(pictures[b].float(), (16, 16), mode="area").flatten(1) for b in blocks])
    for b in blocks:
        apart = torch.cdist(small[b], small) / small.shape[1] ** 0.5
        apart[prompts[b, None] == prompts[None]] = float("inf")
        found[b][apart.amin(1) < _ALIKE] = 3
        images = pictures[b].float()
        found[b][_correlation(images.mean(1)) < _NOISE] = 2
        spread = (images - images.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()
        found[b][spread < _FLAT] = 1
    return found


def _correlation(grey: Tensor) -> Tensor:
    """(n,) correlation of neighbouring pixels of (n, h, w), along both axes."""
    centred = grey - grey.mean((1, 2), keepdim=True)
    across = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2))
    down = (centred[:, 1:] * centred[:, :-1]).mean((1, 2))
    return (across + down) / 2 / centred.square().mean((1, 2)).clamp(min=1e-6)
