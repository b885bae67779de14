"""Cross Initialization: a new word that starts where the text encoder ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Denoiser
from palimpsest.core.words import Word
from palimpsest.ops.drawn import Noised
from palimpsest.ops.word_vectors import outputs_of, starting
from palimpsest.train.loop import TrainStep
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class CrossInitialization(SubjectTune):
    """Textual Inversion whose vectors start at the encoder's output for the class, near which learned words end up.

        minimise over v  mean |eps(x_t, c(v), t) - noise|^2 + stay |v - v_0|^2,    v_0 = E(start), E the text encoder

    Args:
        stay: weight of the distance to the start.
        vectors, start: of the word. word_lr: of Adam, in the vectors' own units.
        epochs, steps, batch, masked: as in every learning of a newcomer (`train.subject.SubjectTune`); `lr`, `rank`,
            `train` and the options of class pictures act on nothing here.

    Cost: that of Textual Inversion, with a sixteenth of its steps.
    Differs from the paper: the start is the class that the newcomer belongs to, where the paper takes the mean over
        names of persons that Stable Diffusion knows; captions are those of the references.
    Fails when: the encoder's outputs lie elsewhere than what the encoder can read, as in models whose tables and
        outputs were not trained together.
    Source: Pang et al., "Cross Initialization for Personalized Text-to-Image Generation", CVPR 2024, arXiv 2312.15905.

    Example:
        >>> patch = CrossInitialization()(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    epochs: Positive = 250.0
    steps: Count | None = 320
    batch: Count = 4
    rank: Size = 0
    prior: NonNegative = 0.0
    vectors: Size = 1
    word_lr: NonNegative = 6.25e-4
    stay: NonNegative = 1e-5

    needs_class: ClassVar[bool] = True

    card = Card(
        name="Cross Initialization",
        title="Cross Initialization for Personalized Text-to-Image Generation",
        year=2024,
        paper="https://arxiv.org/abs/2312.15905",
        family="new words",
        needs="Denoiser",
        reads=("references",),
        claim="Fewer steps than Textual Inversion, with better reconstruction and editability.",
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        return ()

    def begin(self, host: Denoiser, start: str, reads_as: str) -> Word:
        return starting(outputs_of(host, start), self.vectors, reads_as=reads_as)

    def terms(self, step: TrainStep, at: Noised) -> Iterator[Tensor]:
        with step.teacher():
            starts = self.new_words(step.host, step.request, step.data)
        for word, meant in step.words.items():
            for table, vectors in meant.vectors.items():
                yield self.stay * (vectors - starts[word].vectors[table]).square().sum()
