"""LEDITS++: edit-friendly noises, and guidance towards the change where it is strongest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import NonNegative, Share
from palimpsest.ops.editing import DiffusionEdit, EditStep, Inverted, Scene
from palimpsest.ops.inversion import Level, edit_friendly, guided
from palimpsest.ops.masks import by_quantile


@dataclass(frozen=True, kw_only=True)
class LEditsPP(DiffusionEdit):
    """Rebuilds a picture exactly, and adds guidance towards the change in the part of it where that is largest.

        e = e_said + guidance m (e_asked - e_said),   m = [ |e_asked - e_said| in its largest 1 - threshold ]

    on edit-friendly noises, with e_said the prediction under what is said, guided at `source_guidance`. With nothing
    said, e_said is the unconditional prediction and the change is a concept's: the paper's formula.

    Args:
        source_guidance: the scale of guidance under what is said, in all of the walk; 1: none.
        threshold: the share of the latents' grid that a step leaves alone.

    Cost: a forward for each step upwards, two for each step down, twice (edited and rebuilt).
    Differs from the paper: steps are DDPM's of first order, where it has a solver of second order; the mask is that of
        the differences, not its overlap with one of attention maps; one change at a time.
    Fails when: the change is larger than the share that is let change.
    Source: Brack et al., "LEDITS++: Limitless Image Editing using Text-to-Image Models", CVPR 2024, arXiv 2311.16711.
    """

    card = Card(
        name="LEDITS++",
        title="LEDITS++: Limitless Image Editing using Text-to-Image Models",
        year=2024,
        paper="https://arxiv.org/abs/2311.16711",
        family="inversion",
        needs="Denoiser",
        claim="Rebuilds perfectly and edits where the change belongs, without tuning, in few steps.",
    )
    quick: ClassVar = {"steps": 3, "threshold": 0.5}

    source_guidance: NonNegative = 1.0
    threshold: Share = 0.7

    def invert(self, scene: Scene) -> Inverted:
        def predict(x: Tensor, at: Level) -> Tensor:
            return guided(scene.host, x, at, scene.said, scene.null, self.source_guidance)

        path, noises = edit_friendly(scene.x0, scene.levels, predict, scene.rngs)
        return Inverted(path=path, noises=noises)

    def step(self, at: EditStep) -> Tensor:
        host = at.scene.host
        said, asked = at.x0(at.said, at.asked)
        rebuilt = said
        if host.guided(self.source_guidance):
            rebuilt = guided(host, at.x, at.here, at.said, at.null, self.source_guidance)
        change = asked - said
        return rebuilt + at.scene.guidance * by_quantile(change, self.threshold) * change
