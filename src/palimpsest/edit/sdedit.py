"""SDEdit: noise a picture part of the way and sample it back under another prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.card import Card
from palimpsest.core.fields import Part
from palimpsest.ops.editing import DiffusionEdit, Inverted, Scene
from palimpsest.ops.inversion import drawn, noised


@dataclass(frozen=True, kw_only=True)
class SDEdit(DiffusionEdit):
    """Adds noise to a picture and samples it back under what is asked.

        x_t = alpha x0 + sigma noise

    at the level where `depth` of the schedule is left; from there the model's sampling, which does not know the
    picture. The more noise, the more is asked for and the less is kept.

    Cost: a guided forward for each step that is walked, twice (edited and rebuilt).
    Differs from the paper: steps are DDIM's or Euler's (`ops.inversion.down`), where the paper solves the reverse SDE.
    Fails when: the change needs more noise than the picture survives: there is no depth at which a face gets a hat and
        stays the same person.
    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", ICLR 2022,
        arXiv 2108.01073.
    """

    card = Card(
        name="SDEdit",
        title="SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
        year=2022,
        paper="https://arxiv.org/abs/2108.01073",
        family="baseline",
        needs="Denoiser",
        claim="Noise of half the schedule balances faithfulness to the picture and realism; no inversion is needed.",
    )
    quick: ClassVar = {"steps": 3, "depth": 0.7}

    depth: Part = 0.5

    def invert(self, scene: Scene) -> Inverted:
        return Inverted(path=noised(scene.x0, scene.levels, drawn(scene.x0, scene.rngs)))
