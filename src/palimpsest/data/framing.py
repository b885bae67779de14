"""A picture of any shape on a model's square, and what happened there back at the picture's own size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Frame:
    """Where a picture of height x width lies on a square: at (top, left), within x across pixels large.

    Args:
        size: side of the square.
    """

    height: int
    width: int
    size: int
    within: int
    across: int

    @staticmethod
    def of(height: int, width: int, size: int) -> Frame:
        """The frame in which the longer side fills the square."""
        longer = max(height, width)
        within, across = (max(1, round(side * size / longer)) for side in (height, width))
        return Frame(height, width, size, within, across)

    @property
    def top(self) -> int:
        return (self.size - self.within) // 2

    @property
    def left(self) -> int:
        return (self.size - self.across) // 2

    def onto(self, colours: np.ndarray) -> Tensor:
        """(1, 3, size, size) uint8 of colours (H, W, 3) uint8; beside a picture that is no square its edges go on."""
        from PIL import Image

        fits = (self.height, self.width) == (self.within, self.across)
        picture = Image.fromarray(colours)
        small = picture if fits else picture.resize((self.across, self.within), Image.Resampling.LANCZOS)
        below, right = self.size - self.within - self.top, self.size - self.across - self.left
        return _channels(np.pad(np.asarray(small), ((self.top, below), (self.left, right), (0, 0)), mode="edge"))

    def mask_onto(self, mask: np.ndarray) -> Tensor:
        """(1, 1, size, size) float32 of a mask (H, W) float in [0, 1]: what lies beside the picture must not change."""
        whole = torch.zeros(1, 1, self.size, self.size)
        small = functional.interpolate(
            torch.from_numpy(mask)[None, None].float(), (self.within, self.across), mode="area"
        )
        whole[:, :, self.top : self.top + self.within, self.left : self.left + self.across] = small
        return whole

    def back(self, values: Tensor, *, smooth: bool) -> np.ndarray:
        """(H, W, c) float32 of values (1, c, size, size); smooth: by cubic curves, which may overshoot, else linear."""
        part = values[:, :, self.top : self.top + self.within, self.left : self.left + self.across].float()
        if (self.height, self.width) != (self.within, self.across):
            smaller = self.height < self.within
            mode = "bicubic" if smooth else "bilinear"
            part = functional.interpolate(part, (self.height, self.width), mode=mode, antialias=smaller)
        return part[0].permute(1, 2, 0).numpy()


def _channels(colours: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))[None]
