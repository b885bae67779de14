"""Null-text inversion: learn the unconditional prompt of each step so that guidance leads back to the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.errors import Unsupported
from palimpsest.core.fields import Count, Positive
from palimpsest.core.host import Cond
from palimpsest.ops.editing import DiffusionEdit, Inverted, Scene
from palimpsest.ops.guidance import classifier_free
from palimpsest.ops.inversion import Level, denoised, down, guided, inverted


@dataclass(frozen=True, kw_only=True)
class NullText(DiffusionEdit):
    """Inverts by DDIM, and learns for each step the null text under which guided sampling follows the inversion.

        null_t = argmin |x*_{t-1} - x_{t-1}(x_t, said, null_t)|^2,   x_{t-1} the guided step down

    with x* the states of the inversion. The edit is guided with the same null texts under what is asked.

    Args:
        optimise: learn the null texts. Without, they are what is said: the guided step is then the unguided one while
            rebuilding (negative-prompt inversion).
        inner: steps of Adam for each step of sampling.
        lr: of Adam, falling by a hundredth of it with each step of sampling.

    Cost: a forward for each step upwards; 2 forwards and a backward for each inner step; a guided forward for each step
        down, twice. Without optimising, that of DDIM inversion.
    Differs from the paper: Adam does not stop early, so that a picture's result does not depend on its batch.
    Fails when: what is said does not describe the picture; without optimising, where guidance is large.
    Source: Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", CVPR 2023, arXiv
        2211.09794; without optimising Miyake et al., "Negative-prompt Inversion", 2023, arXiv 2305.16807.
    """

    card = Card(
        name="Null-text inversion",
        title="Null-text Inversion for Editing Real Images using Guided Diffusion Models",
        year=2023,
        paper="https://arxiv.org/abs/2211.09794",
        family="inversion",
        needs="Denoiser",
        claim="Rebuilds real pictures nearly as well as the autoencoder does, under guidance, with no weight changed.",
    )
    quick: ClassVar = {"steps": 3, "inner": 2}

    optimise: bool = True
    inner: Count = 10
    lr: Positive = 1e-2

    def invert(self, scene: Scene) -> Inverted:
        if not scene.host.guided(max(2.0, scene.guidance)):
            raise Unsupported(f"{scene.host.name} reads its guidance as a number: there is no null text to learn.")
        path = inverted(scene.host, scene.x0, scene.said, scene.levels)
        if not self.optimise:
            return Inverted(path=path, nulls=[scene.said] * (len(path) - 1))
        nulls, x, null = [], path[0], scene.null
        for i, (here, there) in enumerate(pairwise(scene.levels)):
            null = self._learnt(scene, null, x, path[i + 1], here, there, self.lr * (1 - i / 100))
            nulls.append(null)
            x = down(x, guided(scene.host, x, here, scene.said, null, scene.guidance), here, there)
        return Inverted(path=path, nulls=nulls)

    def _learnt(self, scene: Scene, null: Cond, x: Tensor, goal: Tensor, here: Level, there: Level, lr: float) -> Cond:
        """The null text under which the guided step from x ends next to the goal, learnt from the last step's."""
        states = null.states.detach().clone().requires_grad_()
        optimiser, said = torch.optim.Adam([states], lr=lr), denoised(scene.host, x, here, scene.said)
        with torch.enable_grad():
            for _ in range(self.inner):
                optimiser.zero_grad()
                free = denoised(scene.host, x, here, replace(null, states=states))
                left = down(x, classifier_free(free, said, scene.guidance), here, there) - goal
                # A sum over pictures, so that each one's null text learns from itself alone.
                left.pow(2).flatten(1).mean(1).sum().backward()
                optimiser.step()
        return replace(null, states=states.detach())
