"""The twenty-six silhouettes of Glyphs, as signed distances in a shape's own coordinates (about the unit disc)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from palimpsest.worlds.drawing import (
    arc,
    box,
    capsule,
    contour,
    disc,
    ellipse,
    grid,
    intersect,
    polygon,
    smooth_union,
    subtract,
    union,
)

# A shape answers (body, details): two signed distances; details are inner lines, `_NOTHING` where there are none.
Shape = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
REACH = 1.45  # an atlas page spans [-REACH, REACH] in own coordinates
PAGE = 128
_FAR = 9.0


def _nothing(x: Tensor) -> Tensor:
    return torch.full_like(x, _FAR)


def _circle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return disc(x, y, 0, 0, 0.88), _nothing(x)


def _square(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return box(x, y, 0, 0, 0.74, 0.74, 0.04), _nothing(x)


def _triangle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return polygon(x, y, [(0, -0.86), (0.9, 0.7), (-0.9, 0.7)]) - 0.04, _nothing(x)


def _star(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    points = []
    for k in range(10):
        radius, turn = (1.0, 0.44)[k % 2], math.pi * k / 5
        points.append((radius * math.sin(turn), 0.06 - radius * math.cos(turn)))
    return polygon(x, y, points) - 0.03, _nothing(x)


def _heart(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    points = []
    for k in range(64):
        t = 2 * math.pi * k / 64
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 0.93, -(height + 2.5) / 17.2))
    return polygon(x, y, points), _nothing(x)


def _moon(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return subtract(disc(x, y, 0.06, 0, 0.95), disc(x, y, 0.52, -0.14, 0.72)), _nothing(x)


def _ring(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return contour(disc(x, y, 0, 0, 0.66), 0.24), _nothing(x)


def _cross(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return union(box(x, y, 0, 0, 0.9, 0.3, 0.04), box(x, y, 0, 0, 0.3, 0.9, 0.04)), _nothing(x)


def _tree(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    tiers = [
        polygon(x, y, [(0, top), (half, bottom), (-half, bottom)])
        for top, half, bottom in ((-1.0, 0.46, -0.38), (-0.72, 0.62, 0.12), (-0.3, 0.8, 0.64))
    ]
    return union(*tiers, box(x, y, 0, 0.78, 0.17, 0.2)), _nothing(x)


def _house(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    roof = polygon(x, y, [(0, -0.92), (0.98, -0.02), (-0.98, -0.02)])
    walls, chimney = box(x, y, 0, 0.4, 0.7, 0.46), box(x, y, 0.5, -0.62, 0.14, 0.3)
    door = box(x, y, -0.24, 0.56, 0.2, 0.32)
    window = contour(box(x, y, 0.34, 0.3, 0.15, 0.15), 0.05)
    return union(roof, walls, chimney), union(door, window)


def _fish(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    body = intersect(disc(x, y, -0.22, 0.72, 1.16), disc(x, y, -0.22, -0.72, 1.16))
    tail = polygon(x, y, [(0.42, 0.0), (1.0, -0.5), (0.86, 0.0), (1.0, 0.5)])
    fin = polygon(x, y, [(-0.45, -0.3), (0.05, -0.68), (0.22, -0.26)])
    gill = arc(x, y, -0.86, 0, 0.44, 0, 0.62, 0.045)
    return smooth_union(union(body, fin), tail, 0.03) - 0.03, union(disc(x, y, -0.7, -0.1, 0.085), gill)


def _mushroom(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    cap = intersect(ellipse(x, y, 0, 0.08, 0.96, 0.98), box(x, y, 0, -0.44, 1.2, 0.52)) - 0.03
    stem = polygon(x, y, [(-0.22, 0.0), (0.22, 0.0), (0.32, 0.84), (-0.32, 0.84)]) - 0.05
    spots = union(disc(x, y, -0.42, -0.3, 0.15), disc(x, y, 0.06, -0.6, 0.14), disc(x, y, 0.46, -0.24, 0.14))
    return union(cap, stem), spots


def _flower(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    turns = [2 * math.pi * k / 5 for k in range(5)]
    petals = [disc(x, y, 0.6 * math.sin(turn), -0.6 * math.cos(turn), 0.36) for turn in turns]
    return union(*petals, disc(x, y, 0, 0, 0.42)), disc(x, y, 0, 0, 0.24)


def _cloud(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    puffs = union(disc(x, y, -0.56, 0.18, 0.4), disc(x, y, -0.12, -0.2, 0.5), disc(x, y, 0.5, 0.1, 0.46))
    return union(puffs, box(x, y, 0, 0.3, 0.94, 0.28, 0.27)), _nothing(x)


def _arrow(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    points = [(-0.92, -0.24), (0.1, -0.24), (0.1, -0.72), (0.96, 0.0), (0.1, 0.72), (0.1, 0.24), (-0.92, 0.24)]
    return polygon(x, y, points) - 0.02, _nothing(x)


def _bolt(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    points = [(0.04, -1.0), (-0.66, 0.16), (-0.14, 0.16), (-0.38, 1.0), (0.7, -0.28), (0.16, -0.28), (0.62, -1.0)]
    return polygon(x, y, points) - 0.02, _nothing(x)


def _cup(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    bowl = polygon(x, y, [(-0.82, -0.6), (0.46, -0.6), (0.3, 0.58), (-0.66, 0.58)]) - 0.06
    handle = contour(ellipse(x, y, 0.46, -0.1, 0.4, 0.36), 0.1)
    saucer = box(x, y, -0.14, 0.78, 0.82, 0.09, 0.08)
    return union(bowl, handle, saucer), _nothing(x)


def _key(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    bow = contour(disc(x, y, -0.54, 0, 0.31), 0.14)
    shaft = box(x, y, 0.38, 0, 0.6, 0.13)
    teeth = union(box(x, y, 0.86, 0.24, 0.12, 0.28), box(x, y, 0.5, 0.2, 0.1, 0.24))
    return union(bow, shaft, teeth), _nothing(x)


def _anchor(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    eye = contour(disc(x, y, 0, -0.74, 0.17), 0.09)
    stock, shank = box(x, y, 0, -0.34, 0.46, 0.11, 0.05), box(x, y, 0, 0.14, 0.13, 0.72)
    arms = arc(x, y, 0, 0.06, 0.72, math.pi / 2, 1.35, 0.13)
    flukes = [polygon(x, y, [(s * 0.98, 0.2), (s * 0.74, -0.24), (s * 0.42, 0.22)][:: int(s)]) for s in (1.0, -1.0)]
    return union(eye, stock, shank, arms, *flukes), _nothing(x)


def _boat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    hull = polygon(x, y, [(-0.96, 0.38), (0.96, 0.38), (0.6, 0.88), (-0.6, 0.88)])
    mast = box(x, y, 0.0, -0.2, 0.06, 0.6)
    main = polygon(x, y, [(0.12, -0.94), (0.84, 0.22), (0.12, 0.22)])
    jib = polygon(x, y, [(-0.12, -0.74), (-0.12, 0.22), (-0.68, 0.22)])
    return union(hull, mast, main, jib), _nothing(x)


def _crown(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    points = [(-0.76, 0.7), (-0.94, -0.42), (-0.42, 0.08), (0, -0.72), (0.42, 0.08), (0.94, -0.42), (0.76, 0.7)]
    gems = [disc(x, y, cx, cy, 0.12) for cx, cy in ((-0.92, -0.48), (0, -0.78), (0.92, -0.48))]
    return union(polygon(x, y, points), *gems), box(x, y, 0, 0.4, 0.78, 0.06)


def _leaf(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    turn = math.pi / 4
    u, v = x * math.cos(turn) - y * math.sin(turn), y * math.cos(turn) + x * math.sin(turn)
    blade = intersect(disc(u, v, 0.1, 0.62, 1.1), disc(u, v, 0.1, -0.62, 1.1))
    stalk = capsule(u, v, -0.7, 0, -1.12, 0, 0.08)
    veins = [capsule(u, v, -0.7, 0, 0.62, 0, 0.045)]
    for start in (-0.38, 0.0, 0.34):
        veins += [capsule(u, v, start, 0, start + 0.22, s * 0.25, 0.035) for s in (-1, 1)]
    return union(blade, stalk), union(*veins)


def _bell(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    right = [(0.12, -0.84), (0.42, -0.68), (0.54, -0.36), (0.58, 0.1), (0.68, 0.34), (0.92, 0.54), (0.92, 0.62)]
    body = polygon(x, y, [*right, *((-px, py) for px, py in reversed(right))])
    knob, clapper = disc(x, y, 0, -0.88, 0.15), disc(x, y, 0, 0.72, 0.22)
    return union(body, knob, clapper), box(x, y, 0, 0.36, 0.66, 0.05)


def _cat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    head = ellipse(x, y, 0, 0.2, 0.86, 0.7)
    ears = [polygon(x, y, [(s * 0.84, -0.96), (s * 0.12, -0.4), (s * 0.82, 0.16)][:: int(s)]) for s in (1.0, -1.0)]
    eyes = [ellipse(x, y, s * 0.34, 0.06, 0.11, 0.15) for s in (-1, 1)]
    nose = polygon(x, y, [(-0.11, 0.34), (0.11, 0.34), (0, 0.46)])
    whiskers = [capsule(x, y, s * 0.4, 0.46, s * 0.8, 0.46 + t, 0.03) for s in (-1, 1) for t in (-0.06, 0.1)]
    return union(head, *ears), union(*eyes, nose, *whiskers)


def _hourglass(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    glass = polygon(x, y, [(-0.6, -0.8), (0.6, -0.8), (0.1, 0), (0.6, 0.8), (-0.6, 0.8), (-0.1, 0)])
    caps = union(box(x, y, 0, -0.82, 0.76, 0.13, 0.05), box(x, y, 0, 0.82, 0.76, 0.13, 0.05))
    return union(glass, caps), _nothing(x)


def _butterfly(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    side = x.abs()
    turn = 0.6
    u, v = side - 0.52, y + 0.34
    upper = ellipse(u * math.cos(turn) - v * math.sin(turn), v * math.cos(turn) + u * math.sin(turn), 0, 0, 0.52, 0.38)
    lower = ellipse(side, y, 0.42, 0.46, 0.36, 0.36)
    feeler = capsule(side, y, 0.03, -0.5, 0.26, -0.92, 0.05)
    trunk = capsule(x, y, 0, -0.5, 0, 0.62, 0.1)
    return union(upper, lower, trunk, feeler), union(
        capsule(x, y, 0, -0.42, 0, 0.56, 0.06), disc(side, y, 0.56, -0.36, 0.13)
    )


SHAPES: dict[str, Shape] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "cross": _cross,
    "tree": _tree,
    "house": _house,
    "fish": _fish,
    "mushroom": _mushroom,
    "flower": _flower,
    "cloud": _cloud,
    "arrow": _arrow,
    "bolt": _bolt,
    "cup": _cup,
    "key": _key,
    "anchor": _anchor,
    "boat": _boat,
    "crown": _crown,
    "leaf": _leaf,
    "bell": _bell,
    "cat": _cat,
    "hourglass": _hourglass,
    "butterfly": _butterfly,
}


@cache
def atlas() -> Tensor:
    """All shapes' distances, drawn once: (26, 2, PAGE, PAGE), body and details, own units, clamped to +-REACH."""
    x, y = (axis * REACH for axis in grid(PAGE))
    return torch.stack([torch.stack(shape(x, y)) for shape in SHAPES.values()]).clamp(-REACH, REACH)
