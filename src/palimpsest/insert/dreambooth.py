"""DreamBooth: fine-tunes the denoiser on a few pictures of a newcomer, and on the model's own pictures of its class."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.core.card import Card
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class DreamBooth(SubjectTune):
    """Binds a newcomer to a rare word before its class, while the class stays what it was.

    At x_t of a reference with caption c ("a <v> dog"), and at z_t of a picture of the class with caption c' ("a dog"):

        loss = mean |eps(x_t, c, t) - noise|^2 + prior mean |eps(z_t, c', t) - noise|^2

    Args:
        epochs, steps, lr, batch, rank, train, prior, class_pictures, class_steps, class_guidance, masked: as in every
            learning of a newcomer (`train.subject.SubjectTune`). Rank 4 is the LoRA that most people use; 0 and
            train="full" with lr 5e-6 is the paper's.

    Cost: `class_pictures` pictures once; per step 2 forwards with gradients a reference (1 where prior is 0).
    Differs from the paper: a low-rank change of the attention layers by default, and class pictures that are asked for
        by the class twins of the references' own captions instead of by one sentence; the text encoder stays as it is,
        as in the paper.
    Fails when: captions do not name what varies, which is then learned as part of the newcomer; steps are too many,
        so that references are copied; the class has no word of its own.
    Source: Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", CVPR
        2023, arXiv 2208.12242.

    Example:
        >>> request = Request(target=(Concept(name="sks dog"),), toward=(Concept(name="dog"),))    # doctest: +SKIP
        >>> patch = DreamBooth()(host, request, data={"references": pictures})                     # doctest: +SKIP
    """

    card = Card(
        name="DreamBooth",
        title="DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
        year=2023,
        paper="https://arxiv.org/abs/2208.12242",
        family="fine-tuning",
        needs="Denoiser",
        reads=("references",),
        claim="Draws a subject of a few pictures in new scenes, while the prior-preservation loss keeps its class.",
    )
