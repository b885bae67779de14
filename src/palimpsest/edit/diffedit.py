"""DiffEdit: a mask from where two prompts disagree about a picture, and an edit inside it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, Part, Share
from palimpsest.ops.editing import DiffusionEdit, Inverted, Scene
from palimpsest.ops.inversion import denoised, drawn, inverted, levels
from palimpsest.ops.masks import by_largest


@dataclass(frozen=True, kw_only=True)
class DiffEdit(DiffusionEdit):
    """Finds where what is asked and what is said predict something else, and edits there.

        mask = [ mean over draws |e(x_t, asked) - e(x_t, said)|, clipped at 3 times its mean, scaled ] > threshold

    at one level of noise. The picture is inverted by DDIM and sampled down under what is asked; after each step the
    latents outside the mask are those of the inversion.

    Args:
        draws: of noise that the mask is averaged over.
        mask_depth: the share of the schedule that lies below the level at which the mask is found.
        threshold: of the scaled difference, above which it is in the mask.

    Cost: 2 x draws forwards for the mask, one for each step upwards, a guided one for each step down, twice.
    Differs from the paper: the mask is not resized to the picture and back; nothing in the formulas.
    Fails when: the change lies where the prompts do not yet disagree, or the latents' grid is coarser than the thing
        that shall change.
    Source: Couairon et al., "DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance", ICLR 2023,
        arXiv 2210.11427.
    """

    card = Card(
        name="DiffEdit",
        title="DiffEdit: Diffusion-based semantic image editing with mask guidance",
        year=2023,
        paper="https://arxiv.org/abs/2210.11427",
        family="inversion",
        needs="Denoiser",
        claim="Finds by itself where to edit, and keeps the rest closer to the picture than SDEdit at equal edits.",
    )
    quick: ClassVar = {"steps": 3, "draws": 2}

    draws: Count = 10
    mask_depth: Part = 0.5
    threshold: Share = 0.5

    def invert(self, scene: Scene) -> Inverted:
        at = levels(scene.host, scene.steps, depth=self.mask_depth, size=scene.size)[0]
        differences = []
        for _ in range(self.draws):
            x = at.alpha * scene.x0 + at.sigma * drawn(scene.x0, scene.rngs)
            said, asked = (denoised(scene.host, x, at, cond) for cond in (scene.said, scene.asked))
            differences.append((asked - said).abs())
        mask = by_largest(torch.stack(differences).mean(0), threshold=self.threshold)
        return Inverted(path=inverted(scene.host, scene.x0, scene.said, scene.levels), region=mask)
