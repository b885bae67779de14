"""DDIM inversion: run the sampler backwards from a picture, then forwards under another prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.card import Card
from palimpsest.ops.editing import DiffusionEdit, Inverted, Scene
from palimpsest.ops.inversion import inverted


@dataclass(frozen=True, kw_only=True)
class DDIMInversion(DiffusionEdit):
    """Finds the noise from which the sampler would have drawn a picture, and samples it under what is asked.

        x_{t+1} = alpha_{t+1} x0(x_t) + sigma_{t+1} noise(x_t),

    the sampler's own step upwards, under what is said and without guidance; down again with guidance under what is
    asked. For flows this is Euler's method both ways.

    Cost: a forward for each step upwards, a guided one for each step down, twice (edited and rebuilt).
    Differs from the paper: a part of the schedule is walked (`depth`); the whole of it loses the picture to guidance.
    Fails when: guidance is large, since its steps down are not those that led up; what is said does not describe the
        picture.
    Source: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, arXiv 2010.02502; for editing Dhariwal &
        Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021, arXiv 2105.05233, appendix F.
    """

    card = Card(
        name="DDIM inversion",
        title="Denoising Diffusion Implicit Models",
        year=2021,
        paper="https://arxiv.org/abs/2010.02502",
        family="baseline",
        needs="Denoiser",
        claim="Pictures are encoded into noise and decoded again with low error, falling with the number of steps.",
    )
    quick: ClassVar = {"steps": 3}

    def invert(self, scene: Scene) -> Inverted:
        return Inverted(path=inverted(scene.host, scene.x0, scene.said, scene.levels))
