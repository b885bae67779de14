"""Where a picture changes: regions found from differences, softened at their edges, and changes laid on pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

VISIBLE = 4 / 255
"""A change of colour below this is none, however large the rest of the picture's is."""
SHARE = 0.25
"""A change below this share of the picture's largest is taken for what the way through the model does everywhere."""


def blurred(values: Tensor, radius: float) -> Tensor:
    """(n, c, h, w) under a Gaussian of this standard deviation in pixels; edges are repeated outwards."""
    reach = max(1, round(3 * radius))
    at = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    weights = (-(at**2) / (2 * radius**2)).exp()
    kernel = (weights / weights.sum()).view(1, 1, 1, -1)
    flat = functional.pad(values.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel), kernel.transpose(2, 3))
    return flat.view_as(values)


def widened(marks: Tensor, reach: int) -> Tensor:
    """(n, 1, h, w): the largest value within so many pixels."""
    return functional.max_pool2d(marks, 2 * reach + 1, 1, reach)


def where_changed(change: Tensor, *, share: float = SHARE) -> Tensor:
    """(n, 1, h, w) in [0, 1]: 1 where colours (n, 3, h, w) change, falling softly to exactly 0 where they do not.

    What counts is the change's size, blurred by a hundredth of the side: at least `share` of the picture's largest,
    and at least `VISIBLE`. A picture that changes nowhere gets an empty region.
    """
    unit = max(change.shape[-2:]) / 64
    size = blurred(change.abs().mean(1, keepdim=True), unit)
    largest = size.flatten(1).max(1).values[:, None, None, None]
    core = (size > (share * largest).clamp(min=VISIBLE)).float()
    wide = widened(core, max(2, round(3 * unit)))
    soft = blurred(widened(core, max(1, round(unit))), unit)
    return soft * wide  # zero beyond the edge, where the blur never quite is


def by_largest(differences: Tensor, *, threshold: float) -> Tensor:
    """(n, 1, h, w) of 0 and 1: where |differences| (n, c, h, w), averaged over channels, exceed a share of the largest
    after outliers are cut off, as DiffEdit has it: values are clipped at 3 times their mean, then scaled to [0, 1]."""
    size = differences.abs().mean(1, keepdim=True)
    top = 3 * size.flatten(1).mean(1)[:, None, None, None]
    return (size.minimum(top) / top.clamp(min=1e-12) > threshold).float()


def by_quantile(differences: Tensor, share: float) -> Tensor:
    """(n, 1, h, w) of 0 and 1: the `1 - share` of the pixels where |differences|, summed over channels, are largest."""
    size = differences.abs().sum(1, keepdim=True)
    return (size >= size.flatten(1).quantile(share, dim=1)[:, None, None, None]).float()


def resized(region: Tensor, like: Tensor) -> Tensor:
    """A region (n, 1, h, w) on the grid of other pictures or latents, still in [0, 1]."""
    if region.shape[-2:] == like.shape[-2:]:
        return region
    return functional.interpolate(region, size=like.shape[-2:], mode="bilinear", align_corners=False).clamp(0, 1)
