"""The twenty-six silhouettes of Glyphs, as signed distances in a shape's own coordinates (about the unit disc).

`subjects.json` has a shape for each: its body and, where there are some, inner lines. A shape is a list of a name and
arguments, which may be shapes: a primitive of `worlds.drawing` with its numbers, one of MADE of other shapes, or a
shape in other coordinates: ["mirrored", shape] at |x|, ["turned", cx, cy, angle, shape] around a point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.worlds import drawing
from palimpsest.worlds.drawing import grid

Shape = list[Any]
SHAPES: Mapping[str, Mapping[str, Shape]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PRIMITIVES = ("arc", "box", "capsule", "disc", "ellipse", "polygon")
MADE: Mapping[str, Callable[..., Tensor]] = {
    "union": drawing.union,
    "smooth_union": drawing.smooth_union,
    "intersect": drawing.intersect,
    "subtract": drawing.subtract,
    "contour": drawing.contour,
    "grow": lambda distance, by: distance - by,
}
REACH = 1.45  # an atlas page spans [-REACH, REACH] in own coordinates
PAGE = 128
_NOTHING: Shape = ["grow", ["disc", 0, 0, 0], -9.0]  # everything is far from it


def distance(shape: Shape, x: Tensor, y: Tensor) -> Tensor:
    """Signed distances to a shape at points x, y."""
    name, *arguments = shape
    if name in PRIMITIVES:
        return getattr(drawing, name)(x, y, *arguments)
    if name == "mirrored":
        return distance(arguments[0], x.abs(), y)
    if name == "turned":
        cx, cy, angle, turned = arguments
        x, y, cos, sin = x - cx, y - cy, math.cos(angle), math.sin(angle)
        return distance(turned, x * cos - y * sin, y * cos + x * sin)
    return MADE[name](*(distance(a, x, y) if isinstance(a, list) else a for a in arguments))


@cache
def atlas() -> Tensor:
    """All shapes' distances, drawn once: (26, 2, PAGE, PAGE), body and lines, own units, clamped to +-REACH."""
    x, y = (axis * REACH for axis in grid(PAGE))
    pages = [[distance(s.get(part, _NOTHING), x, y) for part in ("body", "lines")] for s in SHAPES.values()]
    return torch.stack([torch.stack(page) for page in pages]).clamp(-REACH, REACH)
