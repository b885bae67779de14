"""Signed-distance drawing in torch: primitives, placement, coverage, palettes and the styles' renderer.

The frame spans [-1, 1] x [-1, 1], x to the right and y **down**; a pixel is 2 / size wide. A signed distance
is negative inside. Every parameter of a primitive is a float or a tensor that broadcasts against the (n, h, w)
coordinates, for example (n, 1, 1). Everything is differentiable in its parameters except `pixel` and `stitch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from palimpsest.worlds.styles import PAINTERS, STYLES, STYLES_HELD_OUT

__all__ = [
    "BACKGROUNDS", "COLOURS", "SIZE", "STYLES", "STYLES_HELD_OUT", "arc", "box", "capsule", "contour", "coverage",
    "disc", "ellipse", "grid", "intersect", "place", "polygon", "render", "smooth_union", "subtract", "union",
    "uniform",
]  # fmt: skip

SIZE = 64
Number = float | Tensor

# Subject colours and backgrounds share no word and stay far apart in every style.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.89, 0.12, 0.14),
    "green": (0.12, 0.60, 0.20),
    "blue": (0.12, 0.32, 0.92),
    "yellow": (1.00, 0.86, 0.10),
    "purple": (0.58, 0.16, 0.78),
    "orange": (1.00, 0.50, 0.04),
    "black": (0.05, 0.05, 0.06),
    "white": (0.98, 0.98, 0.98),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "mint": (0.64, 0.93, 0.76),
    "sky": (0.56, 0.80, 0.98),
    "pink": (1.00, 0.68, 0.80),
    "cream": (1.00, 0.94, 0.78),
    "grey": (0.58, 0.58, 0.60),
    "navy": (0.06, 0.10, 0.31),
    "chocolate": (0.30, 0.16, 0.09),
    "teal": (0.00, 0.46, 0.47),
}


def uniform(n: int, low: float, high: float, *, generator: Generator) -> Tensor:
    """Draw (n,) float32 numbers evenly from [low, high)."""
    return torch.rand(n, generator=generator) * (high - low) + low


def grid(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The pixel centres of the frame: x and y, each (size, size), in (-1, 1), y down."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def place(x: Tensor, y: Tensor, *, centre: Tensor, scale: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Frame coordinates -> a shape's own coordinates, in which it is about the unit disc.

    Args:
        x, y: (h, w) or (n, h, w) frame coordinates.
        centre: (n, 2) where the shape stands, frame units (x, y).
        scale: (n,) its radius in frame units; distances found in own coordinates are times `scale` in the frame.
        angle: (n,) radians, clockwise on the picture.

    Returns:
        u, v: (n, h, w) each.
    """
    dx = x - centre[:, 0, None, None]
    dy = y - centre[:, 1, None, None]
    cos = (torch.cos(angle) / scale)[:, None, None]
    sin = (torch.sin(angle) / scale)[:, None, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def disc(x: Tensor, y: Tensor, cx: Number = 0.0, cy: Number = 0.0, radius: Number = 1.0) -> Tensor:
    """Signed distance to a disc."""
    return torch.sqrt((x - cx) ** 2 + (y - cy) ** 2 + 1e-12) - radius


def ellipse(x: Tensor, y: Tensor, cx: Number, cy: Number, rx: Number, ry: Number) -> Tensor:
    """Distance to an ellipse, first order: f |f - 1| / |grad f| with f = |(x/rx, y/ry)|; exact on the outline."""
    px, py = (x - cx) / rx, (y - cy) / ry
    f = torch.sqrt(px**2 + py**2 + 1e-12)
    slope = torch.sqrt((px / rx) ** 2 + (py / ry) ** 2 + 1e-12)
    return f * (f - 1) / slope


def box(x: Tensor, y: Tensor, cx: Number, cy: Number, half_w: Number, half_h: Number, corner: Number = 0.0) -> Tensor:
    """Signed distance to an axis-aligned box with half sizes (half_w, half_h) and rounded corners."""
    qx = (x - cx).abs() - half_w + corner
    qy = (y - cy).abs() - half_h + corner
    outside = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-12)
    return outside + torch.maximum(qx, qy).clamp(max=0) - corner


def capsule(x: Tensor, y: Tensor, ax: Number, ay: Number, bx: Number, by: Number, radius: Number) -> Tensor:
    """Signed distance to the segment a-b, thickened by `radius`."""
    ex, ey = bx - ax, by - ay
    px, py = x - ax, y - ay
    t = ((px * ex + py * ey) / (ex * ex + ey * ey + 1e-12)).clamp(0, 1)
    return torch.sqrt((px - t * ex) ** 2 + (py - t * ey) ** 2 + 1e-12) - radius


def arc(
    x: Tensor, y: Tensor, cx: Number, cy: Number, radius: Number, middle: float, half_angle: float, thickness: Number
) -> Tensor:
    """Signed distance to an arc of a circle with round ends.

    Args:
        middle: the direction of the arc's middle, radians from +x, clockwise on the picture (y is down).
        half_angle: radians to either side.
        thickness: half the stroke's width.
    """
    px, py = x - cx, y - cy
    along = px * math.cos(middle) + py * math.sin(middle)
    across = (py * math.cos(middle) - px * math.sin(middle)).abs()
    ring = (torch.sqrt(along**2 + across**2 + 1e-12) - radius).abs()
    end_a, end_b = radius * math.cos(half_angle), radius * math.sin(half_angle)
    ends = torch.sqrt((along - end_a) ** 2 + (across - end_b) ** 2 + 1e-12)
    inside = across * math.cos(half_angle) <= along * math.sin(half_angle)
    return torch.where(inside, ring, ends) - thickness


def polygon(x: Tensor, y: Tensor, points: Sequence[tuple[Number, Number]]) -> Tensor:
    """Signed distance to a simple polygon: the nearest edge, signed by the crossing number. Cost: ~15 ops a corner."""
    nearest: Tensor | None = None
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        t = ((px * ex + py * ey) / (ex * ex + ey * ey + 1e-12)).clamp(0, 1)
        square = (px - t * ex) ** 2 + (py - t * ey) ** 2
        nearest = square if nearest is None else torch.minimum(nearest, square)
        crosses = (y < ay) != (y < by)
        inside = inside ^ (crosses & ((px * ey < py * ex) == (torch.as_tensor(ey) > 0)))
    if nearest is None:
        raise ValueError("polygon got no points; it needs at least 3 corners")
    distance = torch.sqrt(nearest + 1e-12)
    return torch.where(inside, -distance, distance)


def union(*distances: Tensor) -> Tensor:
    """Whatever lies in any of the shapes."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.minimum(result, other)
    return result


def intersect(*distances: Tensor) -> Tensor:
    """Whatever lies in all of the shapes."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.maximum(result, other)
    return result


def subtract(shape: Tensor, *holes: Tensor) -> Tensor:
    """The shape without the holes."""
    return intersect(shape, *(-hole for hole in holes))


def smooth_union(a: Tensor, b: Tensor, softness: float) -> Tensor:
    """Union with a round fillet: -k log(exp(-a/k) + exp(-b/k)), k = `softness` in coordinate units."""
    return -softness * torch.logaddexp(-a / softness, -b / softness)


def contour(distance: Tensor, half_width: Number) -> Tensor:
    """Signed distance to the line along a shape's outline."""
    return distance.abs() - half_width


def coverage(distance: Tensor, pixel: Number = 2 / SIZE) -> Tensor:
    """Anti-aliased coverage in [0, 1] of a signed distance; `pixel` is a pixel's width in the distance's units."""
    return (0.5 - distance / pixel).clamp(0, 1)


def render(
    style: Tensor, *, albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator
) -> Tensor:
    """Draw pictures in their styles.

    Args:
        style: (n,) int64 index into `STYLES`.
        albedo: (n, 3, h, w) in [0, 1], the subject's colour; also read a few pixels outside `alpha`, so let it
            reach over the whole frame (or bleed 4 px).
        alpha: (n, 1, h, w) in [0, 1], coverage of everything drawn.
        ink: (n, 1, h, w) in [0, 1], coverage of outlines and inner lines, about 2 px wide; neon lights it.
        background: (n, 3) or (n, 3, h, w) in [0, 1].
        generator: CPU; grain, phases and wobble come from it.

    Returns:
        (n, 3, h, w) float32 in [0, 1].

    Raises:
        ValueError: a style index is outside `STYLES`.
    """
    if len(style) and not 0 <= int(style.min()) <= int(style.max()) < len(STYLES):
        raise ValueError(f"style index {style.tolist()} is outside 0..{len(STYLES) - 1}; use STYLES.index(name)")
    if background.dim() == 2:
        background = background[:, :, None, None].expand_as(albedo)
    images = torch.empty_like(albedo)
    for index, name in enumerate(STYLES):
        rows = (style == index).nonzero().squeeze(1)
        if len(rows):
            painted = PAINTERS[name](albedo[rows], alpha[rows], ink[rows], background[rows], generator)
            images = images.index_copy(0, rows, painted.clamp(0, 1))
    return images
