"""Textual Inversion: a new word is learned, and nothing of the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Denoiser
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class TextualInversion(SubjectTune):
    """Finds the vectors of a new word under which the model as it is draws the references.

        minimise over v  mean |eps(x_t, c(v), t) - noise|^2

    Args:
        vectors: of the word. start: the text whose mean they start at; the class where not given.
        word_lr: of Adam, in the vectors' own units (the paper's code: 5e-4 times a batch of 4).
        epochs, steps, batch, masked: as in every learning of a newcomer (`train.subject.SubjectTune`); `lr`, `rank`,
            `train` and the options of class pictures act on nothing here.

    Cost: per step 1 forward with gradients through the denoiser and the text encoder, a reference. The patch is a few
    kilobytes.
    Differs from the paper: captions are those of the references, in which the word stands before its class, not
        templates around the word alone.
    Fails when: the model cannot draw the subject whatever it is told; the word's vectors grow far beyond those of
        other words, which then count less (their norm is logged).
    Source: Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
        ICLR 2023, arXiv 2208.01618.

    Example:
        >>> patch = TextualInversion()(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    epochs: float = 250.0
    batch: Count = 4
    rank: Size = 0
    prior: NonNegative = 0.0
    vectors: Size = 1
    word_lr: NonNegative = 2e-3

    card = Card(
        name="Textual Inversion",
        title="An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
        year=2023,
        paper="https://arxiv.org/abs/2208.01618",
        family="new words",
        needs="Denoiser",
        reads=("references",),
        claim="A single new word captures a concept of three to five pictures, and composes with other words.",
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        return ()
