"""The hair of drawn people: eight styles as distances, in head coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.worlds.drawing import disc, ellipse
from palimpsest.worlds.face_identity import KINDS

FAR = 9.0  # a distance that paints nothing
Number = float | Tensor


def oval(
    x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, rx: float | Tensor, ry: float | Tensor
) -> Tensor:
    """About the distance to an ellipse: right along its shorter axis, and one square root cheap."""
    px, py = (x - cx) / rx, (y - cy) / ry
    return (torch.sqrt(px * px + py * py + 1e-12) - 1) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))


def cap(x: Tensor, y: Tensor, rx: Tensor, ry: Tensor, thick: float) -> Tensor:
    """The hair's outside on the skull: an ellipse around the head."""
    f = torch.sqrt((x / (rx + thick)) ** 2 + (y / (ry + thick)) ** 2 + 1e-12)
    return (f - 1) * 0.5


def hair(style: Tensor, x: Tensor, y: Tensor, rx: Tensor, ry: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the hair behind the head and of the hair over the forehead, (n, h, w) each.

    Args:
        style: (n,) int64 in [0, 8).
        x, y: (n, h, w) head coordinates.
        rx, ry: (n, 1, 1) half the head's width and height.
        turn: (n, 1, 1) -1 facing left, 0 front, 1 right; the parting goes with the face.
    """
    back, front = torch.full_like(x, FAR), torch.full_like(x, FAR)
    for index in range(KINDS["hair_style"]):
        rows = (style == index).nonzero().squeeze(1)
        if not len(rows):
            continue
        behind, over = _hair_style(index, x[rows] - 0.03 * turn[rows], y[rows], rx[rows], ry[rows], turn[rows])
        front[rows] = over
        if behind is not None:
            back[rows] = behind
    return back, front


def _hair_style(index: int, x: Tensor, y: Tensor, rx: Tensor, ry: Tensor, turn: Tensor) -> tuple[Tensor | None, Tensor]:
    """Hair behind the head (or None) and over the forehead, for people who share one of the 8 styles."""
    q = ((x - 0.10 * turn) / rx) ** 2
    if index == 0:  # short, with sideburns
        return None, torch.maximum(cap(x, y, rx, ry, 0.05), y + 0.60 * ry - 0.62 * ry * q * q)
    if index == 1:  # a quiff swept to one side
        sweep = oval(x, y, 0.14, -ry - 0.06, 0.38, 0.20)
        line = y + 0.50 * ry - 0.42 * x - 0.10 * q
        return None, torch.minimum(torch.maximum(cap(x, y, rx, ry, 0.06), line), sweep)
    if index == 2:  # afro
        afro = disc(x, y, 0.0, -0.20, rx + 0.31)
        return afro, torch.maximum(cap(x, y, rx, ry, 0.08), y + 0.56 * ry - 0.45 * ry * q)
    if index == 3:  # long, parted in the middle
        half = rx + 0.13 + 0.06 * y.clamp(min=0)
        fall = torch.maximum(x.abs() - half, y - 0.92)
        fall = torch.where(y < 0, oval(x, y, 0.0, 0.0, rx + 0.13, ry + 0.12), fall)
        return fall, torch.maximum(cap(x, y, rx, ry, 0.08), y + 0.86 * ry - 1.05 * ry * (q + 1e-6).sqrt())
    if index == 4:  # bob with a straight fringe
        half = rx + 0.15 - 0.03 * (y * 8).cos()
        bob = torch.maximum(x.abs() - half, y - 0.36)
        bob = torch.where(y < 0, oval(x, y, 0.0, 0.0, rx + 0.12, ry + 0.10), bob)
        side = torch.maximum(rx * 0.88 - x.abs(), y - 0.30)
        return bob, torch.maximum(cap(x, y, rx, ry, 0.08), torch.minimum(y + 0.36 * ry, side))
    if index == 5:  # drawn back, a bun on top
        bun = disc(x, y, 0.0, -ry - 0.17, 0.20)
        return bun, torch.maximum(cap(x, y, rx, ry, 0.04), y + 0.70 * ry - 0.55 * ry * q)
    if index == 6:  # bunches at both sides
        bunch = ellipse(x.abs(), y, rx + 0.17, 0.16, 0.16, 0.32)
        return bunch, torch.maximum(cap(x, y, rx, ry, 0.06), y + 0.78 * ry - 0.75 * ry * (q + 1e-6).sqrt())
    angle = torch.atan2(x, -y)  # spikes all round the top
    spike = ((angle * (7 / torch.pi)) % 1 - 0.5).abs() * 2
    f = torch.sqrt(x * x + y * y + 1e-12)
    reach = rx + (ry - rx) * torch.cos(angle).clamp(min=0) + 0.03 + 0.24 * spike
    crest = torch.maximum((f - reach) * 0.7, y - 0.02)
    return crest, torch.maximum(cap(x, y, rx, ry, 0.04), y + 0.50 * ry - 0.10 * spike)
