"""Geom-Erasing: what a detector finds in the training pictures is written into their captions, and then negated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Several, Size
from palimpsest.core.host import Cond, Denoiser, Guide, Step
from palimpsest.core.method import guiding
from palimpsest.core.patch import Hook
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, draw, noised
from palimpsest.ops.guidance import classifier_free, output_error
from palimpsest.ops.prompts import answered, holds, kept, prompts_for, swapped
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.training import Fitted

Train = Literal["kv", "xattn", "selfattn", "attention", "full"]


@dataclass(kw_only=True)
class Prepared:
    """Pictures, each with its own caption (its row), and the weight of every latent (n, 1, h, w)."""

    pictures: Drawn
    cond: Cond
    weight: Tensor


class Params(TypedDict):
    """Of the hook."""

    negative: str


@dataclass(frozen=True, kw_only=True)
class GeomErasing(FineTune):
    """Fine-tunes on pictures whose captions say what a detector found and where, and samples against that text.

        caption  = prompt, name cell cell ...     for each cell of a bins x bins grid that the concept covers
        loss     = mean w (eps(x_t, caption, t) - noise)^2 ,   w = area_weight where the concept is, else 1
        sampling:  e = e_n + guidance (e_c - e_n) ,            n = the names, with every cell where cells were learnt

    So a concept that no prompt mentions (a watermark) gets words of its own, and these are what guidance leaves.

    Args:
        bins: cells along a side; 0 writes existence only.
        area_weight: of the loss where the concept is.
        train: which layers learn, as in ESD.
        pictures: how many the model draws where there are no data; guidance, walk_steps: of that drawing.
        steps, lr, batch: as in every fine-tuning.

    Data: "pictures" with captions that do not name the concept; what a detector found in each is in their masks (where
    it is) or, where it only knows that it is there, in the column "found" (its name; "" for nothing). Without data the
    model draws pictures of the targets and of what stays; their captions are the targets' prompts without the name.
    The patch holds the change of the denoiser and a hook for the negative text; a negative prompt that the caller gives
    is added to it. Request.keep gives pictures without the concept. Request.toward is not used.

    Cost per step: 1 forward with gradients; sampling costs no more forwards than guidance does.
    Differs from the paper: cells are written as numbers, where it adds location tokens to the vocabulary; the text
        encoder stays. How it weights the concept's area could not be checked: area_weight 1 treats it as the rest.
    Fails when: prompts name the concept: then both branches of guidance hold it and little is left to subtract; the
        caller samples without guidance; the detector misses the concept.
    Source: Liu et al., "Implicit Concept Removal of Diffusion Models", ECCV 2024, arXiv 2310.05873.

    Example:
        >>> watermark = Request(target=(Concept(name="watermark"),))                     # doctest: +SKIP
        >>> patch = GeomErasing()(host, watermark, data={"pictures": stamped})           # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 8
    bins: Size = 4
    area_weight: NonNegative = 1.0
    train: Train = "full"
    pictures: Several = 100
    guidance: float = 7.5
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "pictures": 4, "walk_steps": 3}

    card = Card(
        name="Geom-Erasing",
        title="Implicit Concept Removal of Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2310.05873",
        family="fine-tuning",
        needs="Denoiser",
        claim="Removes implicit concepts (watermarks, QR codes, text) that prompts do not mention.",
        reads=("pictures?",),
    )

    def hooks(self, request: Request, data: Material, fitted: Fitted) -> tuple[Hook, ...]:
        located = "pictures" in data and data["pictures"].masks is not None
        cells = range(1, self.bins**2 + 1) if located else ()
        texts = [" ".join([c.name, *map(str, cells)]) for c in request.target]
        return (Hook(id=self.id, params=Params(negative=", ".join(texts))),)

    @classmethod
    @contextmanager
    def attach(cls, host: Any, hook: Hook) -> Iterator[None]:
        """Guides away from the hook's text until the context ends."""
        negative = hook.read(Params)["negative"]
        with guiding(host, hook, lambda: against(host, negative)):
            yield

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        if "pictures" not in data:
            return self._drawn(host, request, seed)
        given = data["pictures"]
        x0 = host.latents(given.pixels())
        weight, cells = torch.ones(len(x0), 1, *x0.shape[2:]), [""] * len(x0)
        if given.masks is not None:
            area = torch.nn.functional.adaptive_max_pool2d(given.masks, x0.shape[2:]) > 0.5
            weight[area] = self.area_weight
            cells = [where(mask, self.bins) for mask in given.masks[:, 0]]
        said, names = given.captions or [""] * len(x0), detected(given, request)
        captions = [caption(p, name, cell) for p, name, cell in zip(said, names, cells, strict=True)]
        return self._prepared(host, Drawn(row=torch.arange(len(x0)), x0=x0), captions, weight)

    def _drawn(self, host: Denoiser, request: Request, seed: int) -> Prepared:
        said = [(p, c) for c in request.target for p in prompts_for(c)]
        stays = kept(request) or [a for _, a in answered(request)]
        n = self.pictures // 2
        settings: dict[str, Any] = {"steps": self.walk_steps, "guidance": self.guidance}
        shown = draw(host, [p for p, _ in said], n, generator(seed, "shown"), **settings)
        free = draw(host, stays, self.pictures - n, generator(seed, "free"), **settings)
        captions = [caption(_without(p, c.name), c.name, "") for p, c in said] + stays
        pictures = Drawn(row=torch.cat([shown.row, free.row + len(said)]), x0=torch.cat([shown.x0, free.x0]))
        return self._prepared(host, pictures, captions, torch.ones(len(pictures), 1, *pictures.x0.shape[2:]))

    def _prepared(self, host: Denoiser, pictures: Drawn, captions: list[str], weight: Tensor) -> Prepared:
        # A picture's row becomes its own number, so that its weights are found after shuffling.
        cond = host.encode(captions)[pictures.row]
        return Prepared(pictures=Drawn(row=torch.arange(len(pictures)), x0=pictures.x0), cond=cond, weight=weight)

    def loss(self, step: TrainStep) -> Tensor:
        context: Prepared = step.context
        at = noised(step.host, context.pictures, step.batch, step.generator())
        x0 = step.host.denoise(at.x, at.t, context.cond[at.row])
        off = output_error(step.host, at.t, x0, at.x0).square()
        return (context.weight[at.row].to(off.device) * off).mean()


def detected(pictures: Pictures, request: Request) -> Sequence[str]:
    """What was found in each picture, "" for nothing: as its column says, else the one concept where a mask is.

    Raises:
        BadRequest: neither says it.
    """
    if "found" in pictures.columns:
        return pictures.columns["found"]
    if pictures.masks is None or len(request.target) != 1:
        raise BadRequest(
            "Nothing says what the pictures show: give masks of the one concept that is asked for, or a column 'found' "
            "with the name of what is in each, empty for nothing."
        )
    (concept,) = request.target
    return [concept.name if bool((mask > 0.5).any()) else "" for mask in pictures.masks]


def where(mask: Tensor, bins: int) -> str:
    """The cells, counted from 1 row by row, of a bins x bins grid that a mask (H, W) touches; "" without a grid."""
    if not bins:
        return ""
    touched = torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), bins)[0, 0] > 0.5
    return " ".join(str(int(i) + 1) for i in touched.flatten().nonzero().squeeze(1))


def caption(prompt: str, name: str, cells: str) -> str:
    """The prompt with what was found, and where."""
    return ", ".join(part for part in (prompt, f"{name} {cells}".strip() if name else "") if part)


def against(host: Denoiser, negative: str) -> Guide:
    """Classifier-free guidance whose other branch is the negative text, behind the caller's own."""

    read: list[Cond] = []

    def rule(step: Step) -> Tensor:
        if not read:
            read.append(host.encode([", ".join(part for part in (step.negative, negative) if part)]))
        cond, null = step.x0(step.cond, read[0].repeat(len(step.x)))
        return classifier_free(null, cond, step.guidance)

    return rule


def _without(prompt: str, name: str) -> str:
    return " ".join(swapped(prompt, name, "").split()) if holds(prompt, name) else prompt
