"""SalUn for diffusion: the target's pictures are labelled as something else, and only salient weights may learn it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Part
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, Noised, draw, noised
from palimpsest.ops.guidance import classifier_free, output_error
from palimpsest.ops.prompts import answered, kept
from palimpsest.ops.saliency import marked, masked, packed, salient
from palimpsest.train.finetune import FineTune
from palimpsest.train.gradients import gradients_of
from palimpsest.train.loop import Gradients, TrainStep
from palimpsest.train.randomness import generator

Train = Literal["full", "xattn"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Pictures of the target and of what stays, what asks for each, the answers of each target row, the masks."""

    forget: Drawn
    asked: Cond
    answers: list[list[int]]
    answer: Cond
    remain: Drawn
    remain_cond: Cond
    masks: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SalUn(FineTune):
    """Fine-tunes salient weights so that the target's prompts predict what another concept's prompts do.

    Pictures x_f of the target c and x_r of everything that stays are drawn by the model itself and noised. The mask
    holds the `share` of all weights with the largest |gradient| of the forgetting loss on the untouched model,

        - mean (eps_g(x_f, c, t) - noise)^2,    eps_g = (1 + g) eps(x_f, c, t) - g eps(x_f, t), g = mask_guidance

    and training changes nothing outside it; with another concept's prompt c' for each sample and no gradient on the
    right-hand side,

        loss = mean (eps(x_f, c, t) - eps(x_f, c', t))^2 + keep_weight mean (eps(x_r, r, t) - noise)^2

    Args:
        share: of the trained weights that may change (the paper's 0.5).
        keep_weight: of what stays ("alpha" in the authors' command, whose default it has).
        mask_guidance: as above; the authors' default.
        train: "full" (the paper) or "xattn".
        pictures: that are drawn of each; never more than the steps use. guidance, walk_steps: of their sampler.
        steps, lr, batch: as in every fine-tuning; the authors' 5 epochs over some 900 pictures at batch 8. rank: 0
            only, since a low-rank change moves every weight.

    The other concept is Request.toward, else one of Request.keep drawn at random for each sample, else the empty
    prompt. What stays is Request.keep, else what the empty prompt draws.

    Cost per step: 1 forward and 2 with gradients; once, 2 forwards for each picture and step of the sampler, and for
        the mask 2 with gradients for each of the target's pictures. Masks take a byte a trained weight.
    Differs from the paper: pictures are the model's own, as the paper has them for broad concepts only; the wrong
        label is drawn from the kept concepts instead of being the next class.
    Fails when: the kept concepts are few and all else drifts (half of all weights may move); the wrong label is
        close to the target, which then shows in part.
    Source: Fan et al., "SalUn", ICLR 2024, arXiv 2310.12508.

    Example:
        >>> star, moon = Concept(name="star"), Concept(name="moon")    # doctest: +SKIP
        >>> patch = SalUn()(host, Request(target=(star,), keep=(moon,)))    # doctest: +SKIP
    """

    steps: int = 600
    lr: float = 1e-5
    batch: int = 8
    rank: int = 0
    share: Part = 0.5
    keep_weight: NonNegative = 0.5
    mask_guidance: float = 7.5
    train: Train = "full"
    pictures: Count = 800
    guidance: float = 7.5
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 8, "pictures": 24, "walk_steps": 3}

    card = Card(
        name="SalUn",
        title="SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification "
        "and Generation",
        year=2024,
        paper="https://arxiv.org/abs/2310.12508",
        family="fine-tuning",
        needs="Denoiser",
        claim="Forgets a class nearly completely (100 % unlearning accuracy) where earlier methods leave it, at the "
        "quality of the untouched model.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank:
            raise BadRequest(f"rank is {self.rank}; SalUn masks single weights, and a low-rank change moves them all.")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        n = min(self.pictures, self.steps * self.batch)

        def drawn(what: str, prompts: list[str]) -> Drawn:
            return draw(host, prompts, n, generator(seed, what), steps=self.walk_steps, guidance=self.guidance)

        asked, answers, texts = self._labels(request)
        remain = kept(request) or [""]
        forget, cond, null = drawn("forget", asked), host.encode(asked), host.encode([""])
        draws = generator(seed, "mask")
        every = noised(host, forget, n, draws)

        def loss(at: Noised) -> Callable[[], Tensor]:
            def of_batch() -> Tensor:
                x0 = host.denoise(
                    at.x.repeat(2, 1, 1, 1), at.t.repeat(2), Cond.cat([cond[at.row], null.repeat(len(at))])
                )
                with_c, without = x0.chunk(2)
                guided = classifier_free(without, with_c, 1 + self.mask_guidance)
                return -output_error(host, at.t, guided, at.x0).square().mean()

            return of_batch

        parts = [loss(every[i : i + self.batch]) for i in range(0, n, self.batch)]
        masks = salient(gradients_of(host.root, self.trains(host), parts), self.share)
        trace.log.append((0, "masked share", marked(masks.values())))
        return Prepared(
            forget=forget,
            asked=cond,
            answers=answers,
            answer=host.encode(texts),
            remain=drawn("remain", remain),
            remain_cond=host.encode(remain),
            masks=packed(masks),
        )

    def _labels(self, request: Request) -> tuple[list[str], list[list[int]], list[str]]:
        """What asks for the target; for each, rows of the texts that it may be answered as; those texts."""
        free = request.keep and not request.toward
        ways = [replace(request, keep=(), toward=(k,)) for k in request.keep] if free else [request]
        rows = list(zip(*(answered(way) for way in ways), strict=True))
        texts = list(dict.fromkeys(answer for row in rows for _, answer in row))
        return [row[0][0] for row in rows], [[texts.index(answer) for _, answer in row] for row in rows], texts

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        c: Prepared = step.context
        draws = step.generator()
        f = noised(step.host, c.forget, step.batch, draws)
        choices = [c.answers[i] for i in f.row.tolist()]
        wrong = [row[int(torch.randint(len(row), (1,), generator=draws))] for row in choices]
        with torch.no_grad():
            goal = step.host.denoise(f.x, f.t, c.answer[wrong])
        yield output_error(step.host, f.t, step.host.denoise(f.x, f.t, c.asked[f.row]), goal).square().mean()
        r = noised(step.host, c.remain, step.batch, draws)
        x0 = step.host.denoise(r.x, r.t, c.remain_cond[r.row])
        yield self.keep_weight * output_error(step.host, r.t, x0, r.x0).square().mean()

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        return masked(parts[0], step.context.masks)
