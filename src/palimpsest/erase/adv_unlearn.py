"""AdvUnlearn: ESD on the text encoder, under attack while it trains, with a retain set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.captions import captions, in_captions
from palimpsest.ops.guidance import output_error
from palimpsest.ops.listed import everyday
from palimpsest.ops.parts import text_parameters
from palimpsest.ops.prompts import answered, filled, holds, kept
from palimpsest.ops.trajectories import Visited
from palimpsest.train.asked import start
from palimpsest.train.attacks import attack, encoded, random_words
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.walks import KeptWalk


@dataclass(kw_only=True)
class Prepared:
    """Walks towards the target and towards what stays, what the target's prompts are answered as, the first words."""

    target: KeptWalk
    keep: KeptWalk
    answer: Cond | None
    words: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(FineTune):
    """Trains the text encoder against the words that would bring the concept back, found anew as it learns.

    At x_t of a walk towards the target c and x'_t of one towards a retained k, with eps* the untouched model:

        attack:  w = argmin mean (eps(x_t, [w, c], t) - eps*(x_t, c, t))^2       (`attack_steps` of Adam)
        loss     = mean (eps(x_t, [w, c], t) - [eps*(x_t, t) - eta (eps*(x_t, c, t) - eps*(x_t, t))])^2
                 + keep_weight mean (eps(x'_t, k, t) - eps*(x'_t, k, t))^2

    Args:
        eta: strength of the negative guidance.
        keep_weight: of the retain set (the public code's default; 0.3 for nudity). keep_batch: its samples a step.
        words: k of the prefix w. attack_steps, attack_lr: of each attack, which goes on from the last one's words;
            attack_lr is in units of the token table's root mean square (0.07 is the public code's 1e-3 for CLIP).
        captions: sentences of everyday words in which the target is erased, and others that stay; 0 for none.
        attack_every: steps between attacks. warmup: steps before the first.
        guidance, walk_steps: of the walks. steps, lr, batch, rank: as in every fine-tuning.

    Request.keep is the retain set; without it, everyday words of the target's kind stand for the paper's COCO objects.
    Request.toward replaces the unconditional prediction; in a caption, the caption without the target does, so that
    only the target is negated. Several targets share one prefix.

    Cost per step: 2 forwards of each walk's rows (3 of the target's, with captions) and 1 with gradients; an attack
        adds attack_steps of `batch` rows with gradients. Where the public code samples anew for every step of an
        attack, the walk's states serve.
    Differs from the paper: besides the name, sentences of the concept's kind and captions with it are erased; token
        vectors stay, as in the public code, where the trained encoder reads frozen ones.
    Fails when: the attacker has more words or steps than the training had; with a retain set far from the target, its
        neighbours go too; a text space of few dimensions has no room for both.
    Source: Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion
        Models", NeurIPS 2024, arXiv 2405.15234.

    Example:
        >>> patch = AdvUnlearn(steps=300)(host, Request(target=(Concept(name="church"),)))    # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    rank: int = 0
    eta: float = 1.0
    keep_weight: NonNegative = 1.0
    keep_batch: Count = 5
    words: Count = 1
    attack_steps: Count = 30
    attack_lr: NonNegative = 0.07
    attack_every: Count = 1
    warmup: Size = 200
    captions: Size = 100
    guidance: float = 3.0
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "keep_batch": 2, "attack_steps": 2, "captions": 8, "walk_steps": 3}

    card = Card(
        name="AdvUnlearn",
        title="Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2405.15234",
        family="fine-tuning",
        needs="Denoiser",
        claim="More robust to adversarial prompts than ESD, with a balanced utility; the encoder is plug-and-play.",
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        return text_parameters(host, "AdvUnlearn", tables=False)

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        pairs = answered(request)
        for c, toward in zip(request.target, request.replacements(), strict=True):
            other = "" if toward is None else toward.name
            pairs += [(p[0], p[1]) for p in in_captions(c, [other], self.captions)]
        staying = kept(request) or [s for c in request.target for k in everyday(c) for s in filled(k)[:1]]
        if self.captions:
            kin = [p[0] for k in request.keep for p in in_captions(k, [], self.captions // len(request.keep))]
            names = [c.name for c in request.target]
            free = [*kin, *captions(self.captions, names)]
            staying += [p for p in free if not any(holds(p, name) for name in names)]

        def walk(prompts: list[str]) -> KeptWalk:
            return KeptWalk(prompts=prompts, steps=self.walk_steps, guidance=self.guidance)

        return Prepared(
            target=walk([p for p, _ in pairs]),
            keep=walk(staying),
            answer=host.encode([a for _, a in pairs]) if any(a for _, a in pairs) else None,
            words=random_words(host, self.words, generator(seed, "words")),
        )

    def kept(self, context: Prepared, seed: int) -> Mapping[str, Tensor]:
        return context.words

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        context, host = step.context, step.host
        at = context.target.points(step)
        also = context.keep.points(replace(step, batch=self.keep_batch))
        safe = start(step, at, context.answer)
        goal = safe - self.eta * (at.x0_cond - safe)

        def off(at: Visited, cond: Cond, goal: Tensor) -> Tensor:
            return output_error(host, at.t, host.denoise(at.x, at.t, cond), goal).square().mean()

        words = self._words(step, at)
        with host.prefixed(words) if words else nullcontext():
            target = encoded(host, context.target.prompts, at.row)
        yield off(at, target, goal)
        yield self.keep_weight * off(also, encoded(host, context.keep.prompts, also.row), also.x0_cond)

    def _words(self, step: TrainStep, at: Visited) -> dict[str, Tensor]:
        """The prefix of this step; none while warming up. It is kept, so a resumed run has it."""
        since = step.index - self.warmup
        if since < 0:
            return {}
        words = dict(step.kept)
        if since % self.attack_every == 0:
            prompts = step.context.target.prompts
            words = attack(step.host, words, prompts, at, steps=self.attack_steps, batch=len(at), lr=self.attack_lr)
            for name, w in words.items():
                step.kept[name].copy_(w)
        return words
