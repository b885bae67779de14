"""MACE: words around a concept are cleaned in closed form, one LoRA turns attention away from it, fusion joins all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core import delta
from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import LowRank
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops import closed_form
from palimpsest.ops.attention import captured, grid, heat, spans
from palimpsest.ops.captions import captions
from palimpsest.ops.drawn import draw
from palimpsest.ops.fusion import fuse, refine
from palimpsest.ops.prompts import asking, filled, holds, kept, swapped
from palimpsest.ops.text_states import text_layers
from palimpsest.train.each import each_target
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.training import Training

THINGS = ("object", "class", "identity")
"""Kinds of concepts that have a place in the picture; others (styles, attributes) are the whole of it."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One concept: its texts, and pictures of it.

    Args:
        texts: that hold the concept's name; cond: encoded. spans: first and past-the-last token of the name in each.
        tokens: (texts, L) bool, the name's tokens, the end token and the padding.
        x0: (m, c, h, w) clean latents. mask: (m, h, w) bool, where the concept is.
    """

    concept: Concept
    texts: list[str]
    cond: Cond
    spans: list[tuple[int, int]]
    tokens: Tensor
    x0: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class MACE(ModelEdit, Training):
    """Erases many concepts in three stages, of which only the second trains, one concept at a time.

    1. Refinement. With e the states of a sentence with the concept, v those of the same words with its replacement
       (the concept's own tokens left out), k those of kept sentences, every key and value layer becomes

           W' = argmin  sum |W' e - W v|^2 + ridge |W' - W|^2
                        + n keep_weight sum |W' k - W k|^2 + n caption_weight sum |W' c - W c|^2

       with n the number of concepts and c the states of captions, which stand for what the model knows in general.

    2. For each concept i a LoRA D_i of W' is trained until no pixel of the concept attends to its tokens:

           loss = sum over layers | softmax(q k^T)[pixels of the mask, concept's, end and padding tokens] |

    3. Fusion.  D = argmin  sum_i sum_{s of concept i} |D s - D_i s|^2 + ridge |D|^2
                           + n keep_weight sum |D k|^2 + n caption_weight sum |D c|^2,   s all states of its sentences

    Args:
        ridge: of both closed forms (the authors' "lamb": 10 to 1000 for objects, 0 where captions are kept).
        keep_weight: of the kept concepts in both, for each target. The authors' weight grows with the targets: 0.8
            for 1 celebrity, 5 for 5, 8 for 10, 20 for 100; without that, what is erased outweighs what is kept.
        captions, caption_weight: how many sentences of everyday words stay as they are, and how much each weighs for
            each target. The authors keep 616 767 captions of MSCOCO at 1e-4: as much as 62 at 1, against 30 sentences
            of each target. Without captions the refinement is free in all directions that neither list names, and
            with 20 names among 64 it takes them from people that are in neither.
        steps, lr, batch, rank: of each concept's LoRA (the paper's code: lr 1e-5 for objects, 1e-4 for celebrities).
        pictures: of each concept, drawn by the untouched model in `walk_steps` steps at `guidance`.
        threshold: the mask is where the untouched model's own attention to the name is at least this share of its
            largest; objects and identities only.

    Request.toward names the super-categories; without one, the sentence without the name. Request.keep is preserved.

    Cost: pictures x walk_steps x 2 forwards a concept and 1 with gradients a step; refinement and fusion are
        d x d solves in which nothing is stored for any state: seconds for 100 concepts.
    Differs from the paper: masks are the model's own attention in place of a segmentation model; pictures stay
        latents; texts are the concept's own prompts and its kind's templates; captions are put together from lists of
        words; solved in float64; Adam does not decay.
    Fails when: the concept is asked for without its name; attention to it has no place in the picture, or the picture
        shows it without any text attention (memorised backgrounds).
    Source: Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv 2403.06135.

    Example:
        >>> patch = MACE()(host, Request(target=(Concept(name="cat"),), toward=(Concept(name="animal"),)))
        ... # doctest: +SKIP
    """

    steps: int = 50
    lr: float = 1e-4
    batch: int = 1
    rank: Count = 1
    ridge: float = 10.0
    keep_weight: NonNegative = 0.8
    captions: Size = 62
    caption_weight: NonNegative = 0.05
    pictures: Count = 8
    walk_steps: Count = 30
    guidance: float = 7.5
    threshold: float = 0.5

    clip = 1.0

    quick: ClassVar = {"steps": 2, "batch": 2, "captions": 8, "pictures": 4, "walk_steps": 3}

    card = Card(
        name="MACE",
        title="MACE: Mass Concept Erasure in Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2403.06135",
        family="closed form",
        needs="Denoiser",
        claim="Erases up to 100 concepts at once, surpassing prior methods on objects, people, content and styles.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Training.__post_init__(self)

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        weights, seed = text_layers(host, "MACE"), rng.initial_seed()
        scenes = [self._scene(host, concept, seed) for concept in request.target]
        keep = self._keep(host, request)
        around = (
            pair
            for scene, toward in zip(scenes, request.replacements(), strict=True)
            for pair in _around(host, scene, toward)
        )
        edit = refine(around, keep=keep, ridge=self.ridge)
        refined = closed_form.edit_layers(weights, edit)
        with Patch(base="", deltas=refined).applied(host, force=True):
            loras = self._loras(host, request, scenes, seed, trace)
            fused = fuse(loras, keep=keep, ridge=self.ridge)
        return Patch(base="", deltas={n: delta.add(refined[n], fused[n], w.shape) if n in refined else fused[n]
                                      for n, w in weights.items()})  # fmt: skip

    @torch.no_grad()
    def _keep(self, host: Denoiser, request: Request) -> Tensor | None:
        """n (keep_weight sum k k^T + caption_weight sum c c^T) (d, d), float64; None where nothing is to be kept."""
        said = captions(self.captions, [c.name for c in request.target])
        grams = [
            len(request.target) * weight * closed_form.gram(host.encode(texts).states.flatten(0, 1))
            for weight, texts in ((self.keep_weight, kept(request)), (self.caption_weight, said))
            if weight and texts
        ]
        return sum(grams[1:], grams[0]) if grams else None

    def _loras(
        self, host: Denoiser, request: Request, scenes: Sequence[Scene], seed: int, trace: Trace
    ) -> Iterator[tuple[Tensor, dict[str, LowRank]]]:
        """For each concept, the states that its LoRA was made for, and the LoRA."""
        for k, alone, draws, own in each_target(request, trace, seed, "lora", steps=self.steps):
            deltas = self.fit(host, alone, data=scenes[k], seed=draws.initial_seed(), trace=own).deltas
            yield scenes[k].cond.states.flatten(0, 1), {n: d for n, d in deltas.items() if isinstance(d, LowRank)}

    def trains(self, host: Denoiser) -> Sequence[str]:
        return sorted(text_layers(host, "MACE"))

    def loss(self, step: TrainStep) -> Tensor:
        scene, n, draws = step.data, step.batch, step.generator()
        picture = torch.randint(len(scene.x0), (n,), generator=draws)
        text = torch.randint(len(scene.cond), (n,), generator=draws)
        t = _focal_times(step.host, n, draws).to(scene.x0.device)
        alpha, sigma = step.host.noise(t)
        x0, inside, tokens = scene.x0[picture], scene.mask[picture], scene.tokens[text]
        noise, norms = torch.randn(x0.shape, generator=draws), []

        def note(layer: str, maps: Tensor) -> Tensor:
            size = grid(maps.shape[2], x0)
            seen = torch.nn.functional.interpolate(inside[:, None].float(), size=size).flatten(2)[..., None]
            chosen = maps.float() * seen * tokens[:, None, None, :]  # (n, heads, pixels, tokens)
            norms.append((chosen.square().sum((1, 2, 3)) + 1e-12).sqrt().mean())
            return maps

        with step.host.attending(note, "cross_attention"):
            step.host.denoise(alpha * x0 + sigma * noise.to(x0.device), t, scene.cond[text])
        return torch.stack(norms).sum()

    @torch.no_grad()
    def _scene(self, host: Denoiser, concept: Concept, seed: int) -> Scene:
        """Texts and pictures of a concept, by the untouched model."""
        texts = [t for t in dict.fromkeys((*asking(concept), concept.name, *filled(concept))) if holds(t, concept.name)]
        cond, found = host.encode(texts), spans(host, texts, [concept.name] * len(texts))
        place = torch.arange(cond.states.shape[1])
        tokens = torch.stack([((place >= a) & (place < b)) | (place >= n - 1)
                              for (a, b), n in zip(found, cond.lengths.tolist(), strict=True)])  # fmt: skip
        draws = generator(seed, "pictures", concept.name)
        drawn = draw(host, texts, self.pictures, draws, steps=self.walk_steps, guidance=self.guidance)
        mask = torch.ones_like(drawn.x0[:, 0], dtype=torch.bool)
        if concept.kind in THINGS:
            t = _focal_times(host, len(drawn), draws).to(drawn.x0.device)
            alpha, sigma = host.noise(t)
            noise = torch.randn(drawn.x0.shape, generator=draws).to(drawn.x0.device)
            with captured(host) as maps:
                host.denoise(alpha * drawn.x0 + sigma * noise, t, cond[drawn.row])
            name = torch.stack([(place >= a) & (place < b) for a, b in found])[drawn.row]
            seen = [m[0] * name[:, None, None, :] for m in maps.values()]
            mask = heat(seen, drawn.x0) >= self.threshold
        return Scene(concept=concept, texts=texts, cond=cond, spans=found, tokens=tokens, x0=drawn.x0, mask=mask)


def _around(host: Denoiser, scene: Scene, toward: Concept | None) -> Iterator[tuple[Tensor, Tensor]]:
    """States of the words around the concept, and of the same words around its replacement, (m, d) each."""
    other = "" if toward is None else toward.name
    neutral = host.encode([swapped(t, scene.concept.name, other) for t in scene.texts]).states
    width = int(host.tokens([other]).lengths[0]) - 2
    for row, (start, end) in enumerate(scene.spans):
        e = torch.cat([scene.cond.states[row, :start], scene.cond.states[row, end:]])
        v = torch.cat([neutral[row, :start], neutral[row, start + width :]])
        m = min(len(e), len(v))
        yield e[:m], v[:m]


def _focal_times(host: Denoiser, n: int, draws: torch.Generator) -> Tensor:
    """(n,) training times, most of them between 20 % and 40 % of the noise levels, where attention takes shape.

    Density over the share u of all times: s(50 (u - 0.2)) - s(50 (u - 0.4)), with s the logistic function.
    """
    times = host.times(64 * n, draws).sort().values
    u = (torch.arange(64 * n) + 0.5) / (64 * n)
    density = torch.sigmoid(50 * (u - 0.2)) - torch.sigmoid(50 * (u - 0.4))
    return times[density.multinomial(n, generator=draws).to(times.device)]
