"""How a drawn person is put together: parts painted back to front as signed distances.

Head coordinates have the origin between the eyes' height and the nose, x to the right, y down, and about the
frame's units. A face is mirror-symmetric, so eyes, brows, ears, lenses and marks are drawn once in |x|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from palimpsest.worlds.drawing import SIZE, capsule, coverage, disc, ellipse, grid, place, uniform
from palimpsest.worlds.face_hair import FAR, cap, hair, oval
from palimpsest.worlds.face_identity import BEARDED_FROM, CLOTHES, GENES, HAIR, IRIS, kind, skin_colour

HATS = ((0.84, 0.12, 0.16), (0.10, 0.50, 0.72), (0.50, 0.24, 0.62))  # cap, beanie, fedora
FRAME, WHITE, PUPIL, LENS = (0.42, 0.36, 0.52), (0.98, 0.98, 0.97), (0.06, 0.05, 0.07), (0.12, 0.11, 0.20)

PARTS = ("hair", "clothes", "skin", "beard", "nose", "mouth", "eyes", "brows", "glasses", "hat")
_PIXEL = 2 / SIZE
_LINE = 0.85 * _PIXEL  # half the width of an outline

Window = tuple[slice, slice]
# Where parts can be, over all people and all jitter: rows and columns of pixels.
_FULL: Window = (slice(0, 64), slice(0, 64))
_TOP: Window = (slice(0, 50), slice(0, 64))
_HAT: Window = (slice(0, 36), slice(0, 64))
_HEAD: Window = (slice(8, 60), slice(6, 58))
_EARS: Window = (slice(18, 50), slice(2, 62))
_EYES: Window = (slice(9, 47), slice(7, 57))
_MOUTH: Window = (slice(32, 63), slice(8, 56))
_CHEEKS: Window = (slice(30, 46), slice(8, 56))
_NOSE: Window = (slice(28, 48), slice(16, 48))
_NECK: Window = (slice(36, 64), slice(17, 47))
_CHEST: Window = (slice(40, 64), slice(0, 64))


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a person does and wears; each (n,) int64 index as in the world's vocabulary."""

    expression: Tensor  # neutral, smiling, surprised, frowning
    glasses: Tensor  # without, glasses, sunglasses
    hat: Tensor  # bareheaded, cap, beanie, fedora
    pose: Tensor  # left, front, right
    light: Tensor  # from left, from right


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What `drawing.render` needs of n people: albedo (n, 3, h, w), alpha and ink (n, 1, h, w), in [0, 1].

    parts: (n, len(PARTS), h, w), how much of a pixel shows each part; together they are alpha. None: not asked for.
    """

    albedo: Tensor
    alpha: Tensor
    ink: Tensor
    parts: Tensor | None = None


def _palette(colours: tuple[tuple[float, float, float], ...], index: Tensor) -> Tensor:
    return torch.tensor(colours)[index]


def _over(layer: Tensor, colour: Tensor | float, cover: Tensor, window: Window, *, inplace: bool) -> Tensor:
    """The layer (n, c, h, w) with a colour laid over a window of it."""
    rows, columns = window
    end = colour if isinstance(colour, Tensor) else torch.full((), colour)
    if inplace:
        layer[:, :, rows, columns].lerp_(end, cover)
        return layer
    left, right, top, bottom = columns.start, SIZE - columns.stop, rows.start, SIZE - rows.stop
    return torch.lerp(layer, end, F.pad(cover, (left, right, top, bottom)))


class _Canvas:
    """Layers under construction; `paint` puts one part on top, in place unless gradients are wanted."""

    def __init__(self, albedo: Tensor, alpha: Tensor, ink: Tensor, parts: Tensor | None) -> None:
        self.albedo, self.alpha, self.ink, self.parts = albedo, alpha, ink, parts

    def paint(
        self,
        part: str,
        distance: Tensor,
        colour: Tensor,
        *,
        line: float = _LINE,
        window: Window = _FULL,
        solid: bool = False,
    ) -> None:
        """Fill a shape (n, h, w) of a part with a colour (n, 3) and outline it; `solid` shapes are ink all over."""
        inplace = not (torch.is_grad_enabled() and (distance.requires_grad or colour.requires_grad))
        cover = coverage(distance).unsqueeze(1)
        self.albedo = _over(self.albedo, colour[:, :, None, None], cover, window, inplace=inplace)
        self.alpha = _over(self.alpha, 1.0, cover, window, inplace=inplace)
        self.ink = _over(self.ink, float(solid), cover, window, inplace=inplace)
        if self.parts is not None:
            this = torch.tensor([float(part == name) for name in PARTS])[:, None, None]
            self.parts = _over(self.parts, this, cover, window, inplace=inplace)
        if line and not solid:
            outline = coverage(distance.abs() - line).unsqueeze(1)
            self.ink = _over(self.ink, 1.0, outline, window, inplace=inplace)


class _Person:
    """The measures of n people, (n, 1, 1) each, and the coordinates of their parts."""

    def __init__(self, vectors: Tensor, look: Look, bold: Tensor, generator: Generator) -> None:
        n = len(vectors)
        self.vectors, self.look = vectors, look
        across, down = (
            uniform(n, -0.04, 0.04, generator=generator),
            uniform(n, -0.01, 0.07, generator=generator),
        )
        x, y = grid()
        self.x, self.y = place(
            x, y, centre=torch.stack([across, down], 1), scale=uniform(n, 1.04, 1.14, generator=generator),
            angle=uniform(n, -0.11, 0.11, generator=generator),
        )  # fmt: skip
        self.bold = 1 + bold[:, None, None]
        self.turn = (look.pose - 1).to(torch.float32)[:, None, None]  # -1 left, 0 front, 1 right
        self.rx, self.ry = self.gene("face_width", 0.37, 0.52), self.gene("face_height", 0.46, 0.56)
        self.skin = skin_colour(vectors[:, GENES.index("skin")])
        self.hair = _palette(HAIR, kind(vectors, "hair_colour"))
        self.clothes = _palette(CLOTHES, kind(vectors, "clothes"))
        # The face slides over the head as it turns, and is foreshortened.
        self.eye_x = self.gene("eye_spacing", 0.17, 0.23) * (self.rx / 0.44)
        self.eye_y = -0.02
        self.fx = (self.x - 0.15 * self.turn) / (1 - 0.12 * self.turn.abs())
        self.mouth_y = 0.30 * (self.ry / 0.5)

    def face(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates on the face within a window: x, |x| and y."""
        rows, columns = window
        x = self.fx[:, rows, columns]
        return x, x.abs(), self.y[:, rows, columns]

    def gene(self, name: str, low: float, high: float) -> Tensor:
        return (self.vectors[:, GENES.index(name)] * (high - low) + low)[:, None, None]

    def head(self, x: Tensor, y: Tensor, grow: float = 0.0) -> Tensor:
        """An ellipse whose lower half narrows to a pointed chin or widens to a square one."""
        low = (y / self.ry).clamp(0, 1)
        width = (self.rx + grow) * (1 + self.gene("jaw", -0.26, 0.16) * low * low)
        height = self.ry + grow
        f = torch.sqrt((x / width) ** 2 + (y / height) ** 2 + 1e-12)
        return (f - 1) * 0.45


def _paint_body(canvas: _Canvas, person: _Person, back_hair: Tensor) -> None:
    collar = kind(person.vectors, "collar")[:, None, None]  # round, pointed, high, striped
    canvas.paint("hair", back_hair, person.hair)
    rows, columns = _CHEST
    x, y = person.x[:, rows, columns], person.y[:, rows, columns]
    shoulders = oval(x, y, 0.0, 1.07, 0.82, 0.55)
    canvas.paint("clothes", shoulders, person.clothes, window=_CHEST)
    stripes = (collar == 3) & ((y * 5) % 1 < 0.5)
    pale = torch.where(person.clothes.mean(1, keepdim=True) > 0.8, 0.25, 0.97).expand(-1, 3)
    canvas.paint("clothes", torch.where(stripes, shoulders, FAR), pale, line=0, window=_CHEST)
    # Long hair hangs over the shoulders.
    over = torch.where(x.abs() > 0.26, back_hair[:, rows, columns], FAR)
    canvas.paint("hair", over, person.hair, window=_CHEST)
    rows, columns = _NECK
    x, y = person.x[:, rows, columns], person.y[:, rows, columns]
    end = torch.where(collar == 1, 0.98 - 1.4 * x.abs(), 0.67 - 0.4 * x * x)
    neck = torch.maximum(torch.maximum(x.abs() - 0.21, y - end), 0.2 - y)
    colour = torch.where(collar[:, :, 0] == 2, person.clothes * 0.86 + 0.07, person.skin * 0.84)
    canvas.paint("skin", neck, colour, window=_NECK)


def _paint_head(canvas: _Canvas, person: _Person) -> None:
    # A turned head shows one ear, nearer to the middle and in front of the cheek.
    rows, columns = _EARS
    x = person.x[:, rows, columns]
    side = torch.where(person.turn == 0, x.abs(), -person.turn * x)
    size = person.gene("ears", 0.7, 1.35)
    near = person.rx - 0.12 * person.turn.abs() + 0.02
    ear = oval(side, person.y[:, rows, columns], near, 0.02, 0.10 * size, 0.13 * size)
    behind = person.turn == 0
    canvas.paint("skin", torch.where(behind, ear, FAR), person.skin * 0.93, window=_EARS)
    rows, columns = _HEAD
    canvas.paint("skin", person.head(person.x[:, rows, columns], person.y[:, rows, columns]), person.skin, window=_HEAD)
    canvas.paint("skin", torch.where(behind, FAR, ear), person.skin * 0.93, window=_EARS)


def _paint_beard(canvas: _Canvas, person: _Person) -> None:
    worn = (kind(person.vectors, "beard") - BEARDED_FROM)[:, None, None]  # moustache, goatee, full
    mouth = person.mouth_y
    fx, ax, fy = person.face(_MOUTH)
    moustache = oval(ax, fy, 0.10, mouth - 0.105, 0.13, 0.055)
    goatee = oval(fx, fy, 0.0, person.ry - 0.03, 0.15, 0.17)
    jawline = mouth - 0.10 - 0.9 * (ax - 0.17).clamp(min=0)
    rows, columns = _MOUTH
    chin = person.head(person.x[:, rows, columns], fy, 0.05)
    full = torch.maximum(chin, jawline - fy)
    distance = torch.where(worn == 0, moustache, torch.where(worn == 1, goatee, full))
    canvas.paint("beard", torch.where(worn < 0, FAR, distance), person.hair * 0.94, window=_MOUTH)


def _paint_marks(canvas: _Canvas, person: _Person) -> None:
    marks = kind(person.vectors, "marks")[:, None, None]  # 3 kinds without, freckles, mole, cheeks
    fx, ax, fy = person.face(_CHEEKS)
    cheek = person.eye_x * 1.18
    dots = 0.42 - torch.cos((ax - cheek) * 46) * torch.cos((fy - 0.15) * 46)
    freckles = torch.maximum(dots * 0.05, oval(ax, fy, cheek, 0.15, 0.15, 0.085))
    mole = disc(fx, fy, 0.24, 0.19, 0.042)
    blush = oval(ax, fy, cheek + 0.02, 0.17, 0.105, 0.075)
    distance = torch.where(marks == 3, freckles, torch.where(marks == 4, mole, blush))
    rosy = person.skin * torch.tensor([1.0, 0.62, 0.62]) + torch.tensor([0.12, 0.0, 0.04])
    colour = torch.where(marks[:, :, 0] == 5, rosy.clamp(max=1), person.skin * 0.50)
    canvas.paint("skin", torch.where(marks < 3, FAR, distance), colour, line=0, window=_CHEEKS)


def _paint_mouth(canvas: _Canvas, person: _Person) -> None:
    """Between an upper and a lower parabola over q = (x / half width)^2, which four shapes share."""
    n = len(person.vectors)
    mood = person.look.expression
    # Bend of both edges, rise of the upper and drop of the lower in the middle, width. Smiling and frowning
    # are crescents of opposite bend and shade; neutral is a short bar.
    shape = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.85],  # neutral
            [-0.12, 0.0, 0.14, 1.25],  # smiling
            [0.0, 0.13, 0.13, 0.65],  # surprised
            [0.14, 0.06, 0.0, 1.2],  # frowning
        ]
    )
    bend, rise, drop, wide = shape[mood].view(n, 4, 1, 1).unbind(1)
    _, ax, fy = person.face(_MOUTH)
    half = person.gene("mouth_width", 0.14, 0.21) * wide * (0.6 + 0.4 * person.bold)
    lip = person.gene("lips", 0.020, 0.042)
    bend, rise, drop = bend * person.bold, rise * person.bold, drop * person.bold
    q = (ax / half) ** 2
    middle = person.mouth_y + 0.04 + bend * (q - 0.5)
    upper, lower = middle - rise * (1 - q) - lip, middle + drop * (1 - q) + lip
    distance = torch.maximum(torch.maximum(upper - fy, fy - lower), ax - half)
    lips = torch.tensor([[0.90, 0.30, 0.34], [0.80, 0.18, 0.24], [0.55, 0.10, 0.16], [0.55, 0.10, 0.16]])[mood]
    smiling = (mood == 1)[:, None, None]
    canvas.paint("mouth", distance - 0.022 * smiling, lips, window=_MOUTH, solid=True)
    canvas.paint("mouth", torch.where(smiling, distance, FAR), _row(WHITE, person), line=0, window=_MOUTH)


def _paint_eyes(canvas: _Canvas, person: _Person) -> None:
    fx, ax, fy = person.face(_EYES)
    eye_x, eye_y = person.eye_x, person.eye_y
    mood = person.look.expression[:, None, None]
    width = person.gene("eye_size", 0.085, 0.128) * (0.5 + 0.5 * person.bold)
    opening = torch.tensor([0.80, 0.74, 1.22, 0.70])[mood]
    canvas.paint("eyes", oval(ax, fy, eye_x, eye_y, width, width * opening), _row(WHITE, person), window=_EYES)
    gaze = 0.035 * person.turn * fx.sign()
    iris = disc(ax, fy, eye_x + gaze, eye_y, width * 0.58)
    canvas.paint("eyes", iris, _palette(IRIS, kind(person.vectors, "eye_colour")), line=0, window=_EYES)
    canvas.paint("eyes", disc(ax, fy, eye_x + gaze, eye_y, width * 0.27), _row(PUPIL, person), line=0, window=_EYES)
    thick = person.gene("brow_thickness", 0.018, 0.052)
    lift = torch.tensor([0.0, 0.02, 0.10, -0.03])[mood] * person.bold
    slant = person.gene("brow_slant", -0.05, 0.05) + torch.tensor([0.0, -0.02, -0.03, 0.11])[mood] * person.bold
    brow_y = eye_y - 0.155 - lift
    brow = capsule(ax, fy, eye_x - 0.12, brow_y + slant, eye_x + 0.12, brow_y - slant * 0.6, thick)
    canvas.paint("brows", brow, person.hair * 0.88 + 0.02, window=_EYES, solid=True)


def _paint_nose(canvas: _Canvas, person: _Person) -> None:
    width, length = person.gene("nose_width", 0.05, 0.10), person.gene("nose_length", 0.07, 0.15)
    tip = person.turn * 0.07
    fx, _, fy = person.face(_NOSE)
    f = ((fx - tip) / width) ** 2 + ((fy - 0.13) / length) ** 2
    nose = (torch.sqrt(f + 1e-12) - 1) * 0.08
    canvas.paint("nose", nose, person.skin * 0.80, line=0, window=_NOSE)
    under = torch.maximum(nose.abs() - 0.022, 0.13 + length * 0.35 - fy)
    canvas.paint("nose", under, person.skin * 0.50 + 0.05, window=_NOSE, solid=True)


def _paint_glasses(canvas: _Canvas, person: _Person) -> None:
    worn = person.look.glasses[:, None, None]
    fx, ax, fy = person.face(_EYES)
    eye_x = person.eye_x
    lens = oval(ax, fy, eye_x, person.eye_y, 0.165, 0.145)
    bar = torch.maximum((fy - person.eye_y + 0.02).abs() - 0.022, 0.13 - (ax - eye_x).abs())
    bar = torch.maximum(bar, ax - person.rx)
    frame = torch.minimum(lens.abs() - 0.033, bar)
    canvas.paint("glasses", torch.where(worn == 2, lens, FAR), _row(LENS, person), line=0, window=_EYES)
    canvas.paint("glasses", torch.where(worn == 0, FAR, frame), _row(FRAME, person), window=_EYES, solid=True)
    shine = capsule(fx - eye_x * fx.sign(), fy, -0.05, 0.0, 0.03, -0.08, 0.02)
    canvas.paint("glasses", torch.where(worn == 2, shine, FAR), _row(WHITE, person) * 0.8, line=0, window=_EYES)


def _paint_hat(canvas: _Canvas, person: _Person) -> None:
    rows = (person.look.hat > 0).nonzero().squeeze(1)
    if not len(rows):
        return
    hat, turn = person.look.hat[rows][:, None, None], person.turn[rows]
    rx, ry = person.rx[rows], person.ry[rows]
    x, y = person.x[rows][:, _HAT[0]], person.y[rows][:, _HAT[0]]
    rim = -0.52 * ry
    dome = torch.maximum(cap(x, y, rx, ry, 0.09), y - rim)
    brim = ellipse(x, y, 0.30 * turn, rim, rx + 0.06, 0.085)
    band = torch.maximum((y - rim).abs() - 0.085, x.abs() - rx * 0.97)
    knob = disc(x, y, 0.0, -ry - 0.13, 0.12)
    tall = torch.maximum(x.abs() - rx * 0.86 + 0.10 * (rim - y), y - rim)
    tall = torch.maximum(tall, (rim - 0.36 + 0.10 * (1 - (x / 0.2) ** 2).clamp(min=0)) - y)
    wide = ellipse(x, y, 0.06 * turn, rim, rx + 0.22, 0.085)
    whole = torch.where(hat == 1, dome, torch.where(hat == 2, torch.minimum(dome, knob), tall))
    trim = torch.where(hat == 1, brim, torch.where(hat == 2, band, wide))
    colour = _palette(HATS, person.look.hat[rows] - 1)
    second = colour * 0.66
    second = torch.where(hat[:, :, 0] == 2, torch.tensor(WHITE), second)
    parts = None if canvas.parts is None else canvas.parts[rows]
    top = _Canvas(canvas.albedo[rows], canvas.alpha[rows], canvas.ink[rows], parts)
    top.paint("hat", whole, colour, window=_HAT)
    top.paint("hat", trim, second, window=_HAT)
    canvas.albedo = canvas.albedo.index_copy(0, rows, top.albedo)
    canvas.alpha = canvas.alpha.index_copy(0, rows, top.alpha)
    canvas.ink = canvas.ink.index_copy(0, rows, top.ink)
    if canvas.parts is not None and top.parts is not None:
        canvas.parts = canvas.parts.index_copy(0, rows, top.parts)


def _row(colour: tuple[float, float, float], person: _Person) -> Tensor:
    return torch.tensor(colour).expand(len(person.vectors), 3)


def compose(vectors: Tensor, look: Look, *, bold: Tensor, generator: Generator, parts: bool = False) -> Layers:
    """Draw people: genes (n, d) and what they do and wear -> layers for `drawing.render`.

    Place (+-0.04 of the frame's half width), size (+-5 %) and tilt (+-6 degrees) come from the generator.
    Differentiable in the genes that are proportions (not in those that pick a kind).

    Args:
        bold: (n,) how much larger eyes, mouth and brows are drawn than life, about 0 to 0.5; a style with
            coarse marks needs it, as it does on paper.
        parts: whether to say where each part shows; the pictures are the same. Cost: a third more.
    """
    person = _Person(vectors, look, bold, generator)
    n = len(vectors)
    # Styles read colour a little beyond the silhouette, hence hair everywhere at first.
    canvas = _Canvas(
        person.hair[:, :, None, None].repeat(1, 1, SIZE, SIZE),
        torch.zeros(n, 1, SIZE, SIZE),
        torch.zeros(n, 1, SIZE, SIZE),
        torch.zeros(n, len(PARTS), SIZE, SIZE) if parts else None,
    )
    style = kind(vectors, "hair_style")
    back, front = hair(style, person.x, person.y, person.rx, person.ry, person.turn)
    _paint_body(canvas, person, back)
    _paint_head(canvas, person)
    _paint_marks(canvas, person)
    _paint_nose(canvas, person)
    _paint_beard(canvas, person)
    _paint_mouth(canvas, person)
    _paint_eyes(canvas, person)
    canvas.paint("hair", front[:, _TOP[0]], person.hair, window=_TOP)
    _paint_glasses(canvas, person)
    _paint_hat(canvas, person)
    # The side away from the light lies in shade, with a clear edge, so that it reads in every style.
    towards = (look.light * 2 - 1).to(torch.float32)[:, None, None]
    shade = ((0.06 - person.x * towards) / 0.10 + 0.5).clamp(0, 1).unsqueeze(1)
    cool = torch.tensor([0.05, 0.06, 0.09])[:, None, None]
    albedo = canvas.albedo * (1 - 0.46 * shade) + cool * shade
    return Layers(albedo=albedo, alpha=canvas.alpha, ink=canvas.ink, parts=canvas.parts)
