"""Which weights matter most for a loss: masks from the size of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest

Among = Literal["model", "tensor"]
"""model: the largest of all tensors together. tensor: the largest of each tensor."""


def salient(gradients: Mapping[str, Tensor], share: float, *, among: Among = "model") -> dict[str, Tensor]:
    """Marks the `share` of entries with the largest |gradient| (the weight saliency of Fan et al. 2024).

    Args:
        gradients: by name, of any shape and floating dtype.
        share: in [0, 1]; 0.5 marks the larger half.
        among: what is ranked together.

    Returns:
        By name, bool of the gradient's shape. Exactly round(share x entries) entries are marked (for each tensor or
        in all), except that ties at the threshold are marked together and zero gradients never are.

    Raises:
        BadRequest: the share is not in [0, 1].

    Cost: two passes that count; beside the masks, memory of the largest tensor only, nothing is sorted.
    """
    if not 0 <= share <= 1:
        raise BadRequest(f"share is {share}; it is the share of the weights that are marked, from 0 to 1.")
    if among == "tensor":
        least = {name: _least(share, [g]) for name, g in gradients.items()}
    else:
        least = dict.fromkeys(gradients, _least(share, list(gradients.values())))
    return {name: (_sizes(g) >= least[name]).reshape(g.shape) for name, g in gradients.items()}


def shared(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What all masks mark."""
    first, *others = masks
    return {name: torch.stack([mask, *(o[name] for o in others)]).all(0) for name, mask in first.items()}


def packed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks at a bit an entry, (ceil(n / 8),) uint8 each: what a mask costs while training goes on."""
    return {name: _packed(mask) for name, mask in masks.items()}


def masked(gradients: Mapping[str, Tensor], bits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients where the `packed` masks are set, else zero; in place. Every gradient needs its mask.

    Cost: beside the gradients, memory of the largest tensor's mask at 2 bytes an entry.
    """
    return {name: g.mul_(_unpacked(bits[name], g.numel()).view(g.shape)) for name, g in gradients.items()}


def marked(masks: Iterable[Tensor]) -> float:
    """The share of all entries that the masks mark."""
    masks = list(masks)
    return sum(int(m.sum()) for m in masks) / max(1, sum(m.numel() for m in masks))


def _packed(mask: Tensor) -> Tensor:
    eights = torch.nn.functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).view(-1, 8)
    return sum(eights[:, i].to(torch.uint8) << i for i in range(8))  # type: ignore[return-value]


def _unpacked(bits: Tensor, n: int) -> Tensor:
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] & places).bool().reshape(-1)[:n]


def _least(share: float, gradients: Sequence[Tensor]) -> int:
    """The size, as `_sizes` gives it, from which entries are marked."""
    wanted = round(share * sum(g.numel() for g in gradients))
    if wanted == 0:
        return torch.iinfo(torch.int32).max
    high = _counts(gradients, lambda sizes: sizes >> 16)
    top, above = _reached(high, wanted)
    low = _counts(gradients, lambda sizes: sizes[sizes >> 16 == top] & 0xFFFF)
    bottom, _ = _reached(low, wanted - above)
    return max(1, (top << 16) + bottom)  # 1: more than zero


def _sizes(gradient: Tensor) -> Tensor:
    """|g| as integers of the same order: the bits of a float that is not negative are ordered like the float."""
    return gradient.detach().reshape(-1).float().abs().view(torch.int32)


def _counts(gradients: Sequence[Tensor], part: Callable[[Tensor], Tensor]) -> Tensor:
    count = torch.zeros(1 << 16, dtype=torch.int64)
    for g in gradients:
        count += torch.bincount(part(_sizes(g)), minlength=1 << 16).cpu()
    return count


def _reached(count: Tensor, wanted: int) -> tuple[int, int]:
    """The largest bin from which upwards at least `wanted` lie, and how many lie above it."""
    upwards = count.flip(0).cumsum(0)
    i = int((upwards >= wanted).nonzero()[0])
    return len(count) - 1 - i, int(upwards[i] - count[len(count) - 1 - i])
