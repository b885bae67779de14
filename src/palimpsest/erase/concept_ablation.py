"""Concept Ablation: the target's prompts are taught to draw what an anchor concept draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.anchors import staying
from palimpsest.ops.contexts import in_context
from palimpsest.ops.drawn import Drawn, draw, noised
from palimpsest.ops.guidance import output_error
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator

Train = Literal["kv", "attention", "full"]
Loss = Literal["model", "noise"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The anchor's pictures; by row, what asks for the target in its place, the anchor's prompt; kept pictures."""

    pictures: Drawn
    target: Cond
    anchor: Cond
    kept: Drawn | None
    kept_cond: Cond | None


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(FineTune):
    """Matches the target's conditional distribution to an anchor's, on pictures that the model draws of the anchor.

    x_t is a picture of the anchor c, noised to a random time; c* the same prompt with the target in its place; eps*
    the untouched model, eps the one in training:

        model:  loss = mean (eps(x_t, c*, t) - eps*(x_t, c, t))^2
        noise:  loss = mean (eps(x_t, c*, t) - noise)^2
        and     + keep_weight mean (eps(x_k, k, t) - noise)^2  on pictures x_k of the anchor and of the kept concepts k

    Args:
        objective: "model" (the paper's choice) or "noise".
        train: "kv" trains cross-attention keys and values (styles, objects), "attention" all attention layers (the
            authors' later choice for broad concepts), "full" the denoiser (memorised pictures).
        keep_weight: of the diffusion loss on what must stay; 0 leaves it out, as the authors do except where the
            anchor's prompts contain the target's words.
        prompts: how many that name the target among everyday words are added to its own: what the edit meets only
            with other words around it, it would not change there.
        pictures: that are drawn, one prompt after the other; never more than the steps use.
        guidance, walk_steps: of their sampler.
        steps, lr, batch, rank: as in every fine-tuning. Defaults from the authors' code, whose learning rate is 2e-6
            for each picture of a batch of 8.

    Request.toward names the anchor, best the target's category ("cat" for "Grumpy Cat"); without one, the rest of
    each prompt stands for it ("a red" for "a red star"). Request.keep is used where keep_weight > 0.

    Cost per step: 1 forward ("model") and 1 with gradients, 1 more with keep_weight; once, 2 forwards for each
        picture and step of the sampler. Pictures stay latents: nothing is decoded or encoded.
    Differs from the paper: the anchor's prediction is the untouched model's, as its derivation has it; its code takes
        that of the model in training, to save a second copy, which costs nothing here. Its 200 prompts are written by a
        language model; here the concept's own, those of its kind and those of everyday words are used. No weight
        decay, no augmentation by scaled pictures. Kept concepts beside the anchor are ours. Its third choice, training
        token embeddings, is left out.
    Fails when: the anchor is drawn like the target; a prompt asks for the target in words that are not trained on;
        without keep_weight, concepts whose prompts share most of their words with the target's follow it.
    Source: Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023, arXiv 2303.13516.

    Example:
        >>> cats = Request(target=(Concept(name="Grumpy Cat"),), toward=(Concept(name="cat"),))   # doctest: +SKIP
        >>> patch = ConceptAblation()(host, cats)    # doctest: +SKIP
    """

    steps: int = 100
    lr: float = 1.6e-5
    batch: int = 8
    rank: int = 0
    objective: Loss = "model"
    train: Train = "kv"
    keep_weight: NonNegative = 0.0
    prompts: Size = 200
    pictures: Count = 1000
    guidance: float = 6.0
    walk_steps: Count = 50

    clip: ClassVar[float | None] = 1.0

    quick: ClassVar = {"steps": 2, "batch": 2, "pictures": 4, "walk_steps": 3}

    card = Card(
        name="Concept Ablation",
        title="Ablating Concepts in Text-to-Image Diffusion Models",
        year=2023,
        paper="https://arxiv.org/abs/2303.13516",
        family="fine-tuning",
        needs="Denoiser",
        claim="Prevents the generation of a style, instance or memorised picture while related concepts are preserved.",
    )

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        n = min(self.pictures, self.steps * self.batch)

        def drawn(what: str, prompts: list[str]) -> Drawn:
            return draw(host, prompts, n, generator(seed, what), steps=self.walk_steps, guidance=self.guidance)

        pairs = in_context(request, self.prompts, generator(seed, "contexts"), most=n)
        anchors = [anchor for _, anchor in pairs]
        keeping = staying(request) if self.keep_weight else []
        return Prepared(
            pictures=drawn("anchor", anchors),
            target=host.encode([prompt for prompt, _ in pairs]),
            anchor=host.encode(anchors),
            kept=drawn("kept", keeping) if keeping else None,
            kept_cond=host.encode(keeping) if keeping else None,
        )

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        context: Prepared = step.context
        at = noised(step.host, context.pictures, step.batch, step.generator())
        goal = at.x0
        if self.objective == "model":
            with step.teacher():
                goal = step.host.denoise(at.x, at.t, context.anchor[at.row])
        x0 = step.host.denoise(at.x, at.t, context.target[at.row])
        yield output_error(step.host, at.t, x0, goal).square().mean()
        if context.kept is not None and context.kept_cond is not None:
            k = noised(step.host, context.kept, step.batch, step.generator("kept"))
            x0 = step.host.denoise(k.x, k.t, context.kept_cond[k.row])
            yield self.keep_weight * output_error(step.host, k.t, x0, k.x0).square().mean()
