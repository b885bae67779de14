"""Custom Diffusion: a new word, and the keys and values that read text."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.ops.parts import Which
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(SubjectTune):
    """Learns a word before its class together with the layers through which the picture reads text.

        minimise over v, W_k, W_v  mean |eps(x_t, c(v), t) - noise|^2 + prior mean |eps(z_t, c', t) - noise|^2

    Args:
        vectors, word_lr, start: of the new word. lr: of the layers.
        rank: 0 trains the layers themselves, as the paper does.
        epochs, steps, batch, train, prior, class_pictures, class_steps, class_guidance, masked: as in every learning of
            a newcomer (`train.subject.SubjectTune`).

    Cost: `class_pictures` pictures once; per step 2 forwards with gradients a reference, and the text encoder's.
    Differs from the paper: class pictures are drawn by the model itself, where the paper finds real ones; references
        are not resized at random.
    Fails when: captions do not name what varies; a style must be learned, which lies in more than these layers.
    Source: Kumari et al., "Multi-Concept Customization of Text-to-Image Diffusion", CVPR 2023, arXiv 2212.04488.

    Example:
        >>> patch = CustomDiffusion()(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    epochs: Positive = 250.0
    lr: NonNegative = 1e-5
    batch: Count = 2
    rank: Size = 0
    train: Which = "kv"
    class_pictures: Count = 200
    vectors: Size = 1
    word_lr: NonNegative = 1e-3

    card = Card(
        name="Custom Diffusion",
        title="Multi-Concept Customization of Text-to-Image Diffusion",
        year=2023,
        paper="https://arxiv.org/abs/2212.04488",
        family="fine-tuning",
        needs="Denoiser",
        reads=("references",),
        claim="A few layers and a word suffice for a new concept; several can be learned together or merged.",
    )
