"""Pictures of nothing in particular: what a model is shown where no data may be read."""

from __future__ import annotations

import torch
from torch import Tensor


def dead_leaves(n: int, size: tuple[int, int], *, generator: torch.Generator, leaves: int = 40) -> Tensor:
    """(n, 3, H, W) uint8: discs and boxes of shaded colour fall on each other, large ones seldom.

    Radii r follow a density of r^-3 between 4 % and 50 % of the side, as sizes of things in photographs do (Lee et
    al. 2001). Cost: n x leaves x H x W comparisons.
    """
    h, w = size
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")

    def draw(*shape: int) -> Tensor:
        return torch.rand(n, *shape, 1, 1, generator=generator)

    picture = draw(3).expand(n, 3, h, w).clone()
    low, high = 0.04**-2, 0.5**-2
    for _ in range(leaves):
        cx, cy, radius = draw(), draw(), (low + draw() * (high - low)) ** -0.5
        dx, dy = (x - cx).abs(), (y - cy).abs()
        inside = torch.where(draw() < 0.5, (dx.square() + dy.square()).sqrt(), torch.maximum(dx, dy)) < radius
        slope = (draw() - 0.5) * (x - cx) + (draw() - 0.5) * (y - cy)
        colour = (draw(3) + 2 * slope[:, None]).clamp(0, 1)
        picture = torch.where(inside[:, None], colour, picture)
    return (picture * 255).round().byte()
