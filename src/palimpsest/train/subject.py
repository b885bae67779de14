"""The base of systems that learn a newcomer from a few pictures: its denoising, its class beside it, and more."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.method import Work
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.core.words import Word
from palimpsest.ops.drawn import Drawn, Noised, draw, noised
from palimpsest.ops.guidance import output_error
from palimpsest.ops.newcomers import TARGET, classes, twins, word_of
from palimpsest.ops.parts import Which
from palimpsest.ops.prompts import batches
from palimpsest.ops.regions import masked_mean, on_latents
from palimpsest.ops.word_vectors import starting, vectors_of
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a newcomer is learned from, computed once.

    Args:
        captions: of each reference. twins: the same with the class in the newcomer's place; () where no class is said.
        references: their clean latents; row i has caption i.
        masks: (n, 1, h, w) in [0, 1] on the latents' grid, what each reference is about; None: everything.
        class_pictures: of the twins, drawn by the untouched model; None where the loss takes none.
        said, said_of_class: the captions and their twins, encoded; captions None where words of theirs are trained.
    """

    captions: tuple[str, ...]
    twins: tuple[str, ...]
    references: Drawn
    masks: Tensor | None
    class_pictures: Drawn | None
    said: Cond | None
    said_of_class: Cond | None

    def cond(self, host: Denoiser, rows: Tensor) -> Cond:
        """The captions of these references, as the student reads them."""
        return host.encode([self.captions[i] for i in rows.tolist()]) if self.said is None else self.said[rows]

    def class_cond(self, rows: Tensor) -> Cond:
        """The class twins of these references."""
        assert self.said_of_class is not None
        return self.said_of_class[rows]


@dataclass(frozen=True, kw_only=True)
class SubjectTune(FineTune, ABC):
    """A system that learns newcomers from reference pictures with captions that name them.

    At x_t of a reference with caption c, and of a picture z of the class, with c' the caption's class twin:

        loss = mean |eps(x_t, c, t) - noise|^2 + prior mean |eps(z_t, c', t) - noise|^2 + what a paper adds

    The first mean is over the reference's mask where there is one, so that a large ground counts no more than a small
    subject. Class pictures are drawn by the untouched model from the class twins of the same captions; they stay
    latents, and only as many are drawn as steps use.

    Args:
        epochs: how often all references are gone through.
        steps: how long, in steps of the optimiser; None: as many as the epochs take.
        lr, batch, rank: as in every fine-tuning; a batch is that many references, and as many class pictures.
        train: which parameters of the denoiser: "kv", "xattn", "selfattn", "attention", "noxattn" or "full".
        prior: weight of the class pictures; 0 draws none.
        class_pictures: how many, at most.
        class_steps, class_guidance: of the walks that draw them.
        masked: whether masks that come with the references count.
        vectors: how many each newcomer's word learns; 0: it is read as it is spelt.
        word_lr: the rate at which they are learned, in their own units. start: the text at whose mean they start; the
            class where not given.
    """

    epochs: Positive = 100.0
    steps: Count | None = None
    lr: NonNegative = 1e-4
    batch: Count = 1
    rank: Size = 4
    train: Which = "attention"
    prior: NonNegative = 1.0
    class_pictures: Count = 100
    class_steps: Count = 25
    class_guidance: float = 6.0
    masked: bool = True
    vectors: Size = 0
    word_lr: NonNegative = 5e-3
    start: str = ""

    quick: ClassVar = {"steps": 2, "batch": 2, "class_pictures": 2, "class_steps": 2}
    needs_class: ClassVar[bool] = False
    """Whether the loss takes the class also where `prior` is 0."""

    def total(self, data: Material) -> int:
        if self.steps is not None:
            return self.steps
        n = len(data["references"])
        return max(1, math.ceil(self.epochs * n / self.batch))

    def planned(self, data: Material) -> Work:
        steps = self.total(data)
        return Work(steps=steps, samples=steps * self.batch * self.rows)

    @property
    def rows(self) -> int:
        """Rows that go through the denoiser for each reference of a batch, most with gradients."""
        return 2 if self.prior else 1

    def new_words(self, host: Denoiser, request: Request, data: Material) -> Mapping[str, Word]:
        if not self.vectors:
            return {}
        found = {}
        for target, like in zip(request.target, request.replacements(), strict=True):
            start = self.start or (like.name if like is not None else "")
            if not start:
                raise BadRequest(
                    f"{self.card.name} starts the word of {target.name} at its class; name it with --like."
                )
            reads_as = like.name if like is not None else start
            found[word_of(target, like)] = self.begin(host, start, reads_as)
        return found

    def begin(self, host: Denoiser, start: str, reads_as: str) -> Word:
        """A word as it starts: here, every vector at the mean of the start text's own."""
        return starting(vectors_of(host, start), self.vectors, reads_as=reads_as)

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Any:
        """A `Lesson`; leaves that need more return a kind of it.

        Cost: a text forward of the captions and of their twins, one autoencoder forward a reference, and `class_steps`
        x 2 forwards for each class picture.
        """
        pictures = data["references"]
        if not len(pictures):
            raise BadRequest(f"{self.card.name} learns from reference pictures, and there are none.")
        captions = pictures.captions
        if not captions:
            raise BadRequest(f"{self.card.name} learns from pictures with captions; give some, or --captions auto.")
        of = _of(pictures.columns.get(TARGET), len(pictures), request)
        needs = bool(self.prior) or self.needs_class
        likes = classes(request, self.card.name) if needs or request.toward else ()
        said = [twins([c], request.target[k], likes[k])[0] for c, k in zip(captions, of, strict=True)] if likes else []
        latents = torch.cat([host.latents(pictures.pixels(torch.tensor(part))) for part in batches(range(len(of)), 16)])
        masks = pictures.masks if self.masked else None
        return Lesson(
            captions=captions,
            twins=tuple(said),
            references=Drawn(row=torch.arange(len(of)), x0=latents.float()),
            masks=None if masks is None else on_latents(masks, latents),
            class_pictures=self._class(host, said, data, seed) if self.prior else None,
            said=None if self.vectors else host.encode(captions),
            said_of_class=host.encode(said) if said else None,
        )

    def _class(self, host: Denoiser, prompts: list[str], data: Material, seed: int) -> Drawn:
        n = min(self.class_pictures, self.total(data) * self.batch)
        draws = generator(seed, "class pictures")
        return draw(host, prompts, n, draws, steps=self.class_steps, guidance=self.class_guidance)

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        lesson: Lesson = step.context
        at = noised(step.host, lesson.references, step.batch, step.generator())
        x0 = step.host.denoise(at.x, at.t, lesson.cond(step.host, at.row))
        yield self.denoising(step, at, x0) + self.beside(step, at, x0)
        yield from self.terms(step, at)
        if self.prior and lesson.class_pictures is not None:
            of = noised(step.host, lesson.class_pictures, step.batch, step.generator("class"))
            x0 = step.host.denoise(of.x, of.t, lesson.class_cond(of.row))
            yield self.prior * output_error(step.host, of.t, x0, of.x0).square().mean()

    def denoising(self, step: TrainStep, at: Noised, x0: Tensor) -> Tensor:
        """How badly the references are denoised, over their masks."""
        masks = step.context.masks
        errors = output_error(step.host, at.t, x0, at.x0).square()
        return errors.mean() if masks is None else masked_mean(errors, masks[at.row])

    def beside(self, step: TrainStep, at: Noised, x0: Tensor) -> Tensor | float:
        """What a paper adds that reads the prediction x0 for the references; here, nothing."""
        return 0.0

    def terms(self, step: TrainStep, at: Noised) -> Iterator[Tensor]:
        """What a paper adds with forwards of its own; here, nothing."""
        yield from ()


def _of(column: tuple[str, ...] | None, n: int, request: Request) -> list[int]:
    """Which target each reference shows.

    Raises:
        BadRequest: a picture shows none of the targets, or a target has no picture.
    """
    names = [c.name for c in request.target]
    if column is None:
        if len(names) > 1:
            raise BadRequest(f"{len(names)} newcomers, and nothing says which picture shows which of them.")
        return [0] * n
    odd = sorted(set(column) - set(names)) or sorted(set(names) - set(column))
    if odd:
        raise BadRequest(f"{odd[0]!r} is not both a newcomer of the request and shown by a reference.")
    return [names.index(name) for name in column]
