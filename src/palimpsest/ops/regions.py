"""Means and attention inside and outside a region of a picture, on the grid of its latents."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def on_latents(masks: Tensor, latents: Tensor) -> Tensor:
    """Masks (n, 1, H, W) in [0, 1] as shares of the cells of latents (n, c, h, w): (n, 1, h, w)."""
    return functional.interpolate(masks.float(), size=latents.shape[-2:], mode="area").to(latents.device)


def masked_mean(values: Tensor, masks: Tensor) -> Tensor:
    """The mean over pictures of each one's mean (n, c, h, w) under its mask (n, 1, h, w), divided by the mask's area.

    A picture whose mask is empty counts with its whole mean: a mask that marks nothing says nothing.
    """
    area = masks.flatten(1).mean(1)
    inside = (values * masks).flatten(1).mean(1) / area.clamp(min=1e-6)
    return inside.where(area > 1e-6, values.flatten(1).mean(1)).mean()
