"""The ten styles: each turns albedo, coverage, ink and background into a picture.

Every painter takes `(albedo (n,3,h,w), alpha (n,1,h,w), ink (n,1,h,w), background (n,3,h,w), generator)` and
returns (n, 3, h, w), to be clamped to [0, 1]. A painter keeps the subject's colour and the background's readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Painter = Callable[[Tensor, Tensor, Tensor, Tensor, Generator], Tensor]

STYLES = (
    "flat", "sketch", "halftone", "watercolour", "pixel", "neon", "mosaic", "clay", "stitch", "crayon",
)  # fmt: skip
STYLES_HELD_OUT = frozenset({"stitch", "crayon"})


def _mix(under: Tensor, over: Tensor, amount: Tensor | float) -> Tensor:
    return under + (over - under) * amount


def _luma(colour: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w) brightness."""
    return 0.30 * colour[:, 0:1] + 0.59 * colour[:, 1:2] + 0.11 * colour[:, 2:3]


def _line_colour(albedo: Tensor) -> Tensor:
    """A darker shade for lines; on near-black a lighter one, so that lines never vanish."""
    dark = torch.sigmoid((0.16 - _luma(albedo)) * 60)
    return _mix(albedo * 0.52, albedo + 0.42, dark)


@cache
def _blur_matrix(size: int, radius: int) -> Tensor:
    """(size, size): two box filters of 2 * radius + 1 along one axis, the border's value repeated outside."""
    taps = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    box = torch.zeros(size, size)
    box.scatter_add_(1, taps.clamp(0, size - 1), torch.full(taps.shape, 1 / (2 * radius + 1)))
    return box @ box


def _blur(x: Tensor, radius: int) -> Tensor:
    """About a Gaussian of sigma 0.8 * radius. As two matrix products it is ten times as fast as pooling."""
    h, w = x.shape[-2:]
    return _blur_matrix(h, radius).to(x) @ x @ _blur_matrix(w, radius).to(x).T


@cache
def _stretch_matrix(size: int, cells: int) -> Tensor:
    """(size, cells): linear interpolation of `cells` values to `size` pixels, ends held."""
    at = ((torch.arange(size) + 0.5) * cells / size - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _noise(like: Tensor, cells: int, generator: Generator) -> Tensor:
    """Smooth noise (n, 1, h, w) of about unit variance with `cells` bumps a side."""
    n, _, h, w = like.shape
    coarse = torch.randn(n, 1, cells, cells, generator=generator).to(like) * 1.3
    return _stretch_matrix(h, cells).to(like) @ coarse @ _stretch_matrix(w, cells).to(like).T


def _grain(like: Tensor, generator: Generator) -> Tensor:
    """White noise (n, 1, h, w)."""
    n, _, h, w = like.shape
    return torch.randn(n, 1, h, w, generator=generator).to(like)


def _pixels(like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel indices x, y as (1, 1, h, w) floats."""
    _, _, h, w = like.shape
    x = torch.arange(w, device=like.device, dtype=like.dtype).view(1, 1, 1, w).expand(1, 1, h, w)
    y = torch.arange(h, device=like.device, dtype=like.dtype).view(1, 1, h, 1).expand(1, 1, h, w)
    return x, y


def _each(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """(n, 1, 1, 1) uniform numbers."""
    return (torch.rand(n, 1, 1, 1, generator=generator) * (high - low) + low).to(like)


def _flat(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """One even colour, darker lines."""
    return _mix(_mix(background, albedo, alpha), _line_colour(albedo), ink)


def _sketch(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Pencil: a firm outline and slanted hatching on grained paper."""
    x, y = _pixels(alpha)
    n = len(alpha)
    phase = _each(n, 0, 2 * math.pi, alpha, generator)
    slant = _each(n, 0.75, 1.25, alpha, generator)
    wobble = 0.7 * _noise(alpha, 7, generator)
    hatch = torch.sigmoid(4.0 * torch.sin((x + slant * y) * (2 * math.pi / 6.2) + phase + wobble) - 0.4)
    pressure = (0.92 + 0.12 * _noise(alpha, 16, generator)).clamp(0.6, 1)
    paper = background * (1 + 0.025 * _grain(alpha, generator))
    return _mix(_mix(paper, albedo, alpha * hatch * pressure * 0.95), albedo, (ink * 1.2).clamp(max=1) * pressure)


def _halftone(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Print: a turned raster of dots over a weak tint."""
    x, y = _pixels(alpha)
    phase = _each(len(alpha), 0, 2 * math.pi, alpha, generator)
    rate = 2 * math.pi / 7.2
    raster = torch.cos((x + y) * rate + phase) + torch.cos((x - y) * rate + 2 * phase)
    tone = (y / y.max()) * 0.5
    dots = torch.sigmoid(5 * (raster + 0.05 + tone))
    base = _mix(background, albedo, alpha * 0.30)
    return _mix(_mix(base, albedo, alpha * dots), albedo, ink * 0.6)


def _watercolour(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Wash: uneven edges, blooming pigment, a darker rim, grained paper."""
    soft = _blur(alpha, 1)
    # The wobble lives at the edge alone: elsewhere it would leave stray drops on the paper.
    bleed = soft + 0.55 * soft * (1 - soft) * _noise(alpha, 14, generator)
    wash = torch.sigmoid((bleed - 0.46) * 9)
    rim = (4 * wash * (1 - wash)) ** 2
    density = (0.92 + 0.10 * _noise(alpha, 5, generator) + 0.04 * _grain(alpha, generator)).clamp(0.65, 1)
    paper = background * (1 + 0.05 * _blur(_grain(alpha, generator), 1) + 0.025 * _noise(alpha, 4, generator))
    painted = _mix(paper, albedo, wash * density)
    painted = _mix(painted, _mix(albedo, _line_colour(albedo), 0.5), rim * 0.55)
    return _mix(painted, _line_colour(albedo), _blur(ink, 1) * wash * 0.75)


def _pixel(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Sprite: hard blocks of 4 x 4 pixels, lit from above, bricked background."""
    block = 4
    cover = F.avg_pool2d(alpha, block)
    colour = F.avg_pool2d(albedo, block)
    # Blocks that are half covered are half coloured, as sprite artists do, so that small shapes stay legible.
    solid = (cover * 2 - 0.45).clamp(0, 1)
    above = F.pad(solid, (0, 0, 1, 0))[:, :, :-1]
    below = F.pad(solid, (0, 0, 0, 1))[:, :, 1:]
    lit = 0.14 * (solid - above).clamp(min=0) - 0.18 * (solid - below).clamp(min=0)
    line = (F.avg_pool2d(ink, block) * 3 - 1.5).clamp(0, 1)
    sprite = _mix(colour + lit, _line_colour(colour), line)
    picture = _mix(F.avg_pool2d(background, block), sprite, solid)
    picture = picture.repeat_interleave(block, 2).repeat_interleave(block, 3)
    x, y = _pixels(alpha)
    seam = ((x % block == block - 1) | (y % block == block - 1)).to(alpha)
    return picture * (1 - 0.10 * seam)


def _neon(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Tubes of light on a dim wall. A black tube is unlit, before a pale glow of the wall."""
    dark = torch.sigmoid((0.16 - _luma(albedo)) * 60)
    power = _each(len(alpha), 0.9, 1.1, alpha, generator)
    wall = background * (0.64 - 0.24 * _luma(background))
    near, wide = _blur(ink, 2), _blur(ink, 5)
    light = _mix(albedo, background * 0.5 + 0.5, dark)
    glow = ((0.75 * near + 0.9 * wide) * power).clamp(0, 0.9)
    lit = _mix(wall, light, _mix(glow, (glow * 1.3).clamp(max=0.9), dark))
    tube = _mix(albedo + 0.22 * (1 - albedo), albedo, dark)
    return _mix(lit, tube, (ink * 1.15).clamp(max=1))


def _mosaic(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Tesserae: small uneven tiles of varying tone, cut at the outline, in grout."""
    x, y = _pixels(alpha)
    n, _, h, w = alpha.shape
    side = 6.4
    across = x / side + 0.16 * _noise(alpha, 9, generator) + _each(n, 0, 1, alpha, generator) + 1
    down = y / side + 0.16 * _noise(alpha, 9, generator) + _each(n, 0, 1, alpha, generator) + 1
    cells = math.ceil(max(h, w) / side) + 4
    column, row = across.floor().clamp(0, cells - 1), down.floor().clamp(0, cells - 1)
    tones = torch.randn(n, cells * cells, generator=generator).to(alpha)
    tone = tones.gather(1, (row * cells + column).long().view(n, -1)).view(n, 1, h, w)
    edge = torch.minimum((across - across.round()).abs(), (down - down.round()).abs())
    joint = torch.sigmoid((0.09 - edge) * 40)
    grout = torch.where(_luma(background) > 0.45, background * 0.45, background * 0.55 + 0.42)
    # Grout between a subject's own tiles takes a shade of them, so that the subject keeps its colour.
    grout = _mix(grout, _mix(_line_colour(albedo), albedo, 0.4), alpha * (1 - ink) * 0.7)
    tile = _mix(background, albedo, alpha) * (1 + 0.075 * tone) + 0.02 * tone
    return _mix(tile, grout, torch.maximum(joint * 0.62, ink * 0.75))


def _clay(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Modelled: a swelling body lit from the upper left, a gloss, a soft cast shadow."""
    height = _blur(alpha, 3) - 0.35 * _blur(ink, 1)
    slope_x = F.pad(height[:, :, :, 2:] - height[:, :, :, :-2], (1, 1, 0, 0), mode="replicate")
    slope_y = F.pad(height[:, :, 2:] - height[:, :, :-2], (0, 0, 1, 1), mode="replicate")
    facing = -(slope_x + slope_y) * 0.7
    # Rising towards the lower right means facing the light at the upper left.
    lit = (-facing * 3.2).clamp(-1, 1)
    gloss = torch.sigmoid((lit - 0.62) * 14)
    shadow = _blur(F.pad(alpha, (5, 0, 5, 0))[:, :, :-5, :-5], 2)
    ground = background * (1 - 0.42 * shadow)
    body = albedo * (0.95 + 0.42 * lit.clamp(max=0) + 0.25 * lit.clamp(min=0)) + 0.07 * lit.clamp(min=0)
    body = _mix(body, torch.ones_like(body), gloss * 0.55)
    return _mix(_mix(ground, body, alpha), _line_colour(albedo), ink * 0.35)


def _stitch(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Embroidery: crosses of thread on woven cloth."""
    cell = 5
    x, y = _pixels(alpha)
    u, v = x % cell - (cell - 1) / 2, y % cell - (cell - 1) / 2
    thread = (1.25 - torch.minimum((u - v).abs(), (u + v).abs())).clamp(0, 1)
    weave = 0.06 * ((x + y) % 2) - 0.05 * (x % cell == 0).to(alpha)
    cloth = background * (0.97 + weave)
    yarn = _mix(albedo, _line_colour(albedo), 0.6 * ink) * (1 + 0.06 * _noise(alpha, 13, generator))
    return _mix(_mix(cloth, _mix(cloth, albedo, 0.35) * 0.85, alpha * (1 - thread)), yarn, alpha * thread)


def _crayon(albedo: Tensor, alpha: Tensor, ink: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """Wax: grainy, streaky strokes with ragged edges."""
    x, y = _pixels(alpha)
    phase = _each(len(alpha), 0, 2 * math.pi, alpha, generator)
    streak = torch.sin((0.5 * x + y) * 0.9 + phase + 1.6 * _noise(alpha, 10, generator))
    soft = _blur(alpha, 1)
    ragged = torch.sigmoid((soft + 0.7 * soft * (1 - soft) * _noise(alpha, 24, generator) - 0.5) * 10)
    wax = torch.sigmoid(2.2 * (_grain(alpha, generator) + 0.8 * streak + 1.0))
    paper = background * (1 + 0.03 * _grain(alpha, generator))
    drawn = _mix(paper, albedo, ragged * (0.12 + 0.88 * wax))
    return _mix(drawn, _line_colour(albedo), ink * (0.35 + 0.5 * wax))


PAINTERS: dict[str, Painter] = {
    "flat": _flat,
    "sketch": _sketch,
    "halftone": _halftone,
    "watercolour": _watercolour,
    "pixel": _pixel,
    "neon": _neon,
    "mosaic": _mosaic,
    "clay": _clay,
    "stitch": _stitch,
    "crayon": _crayon,
}
