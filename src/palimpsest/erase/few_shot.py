"""Few-shot erasing: the text encoder unlearns a concept from a few pictures of it, within seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fields import Count
from palimpsest.core.host import Denoiser
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, draw, noised
from palimpsest.ops.guidance import output_error
from palimpsest.ops.parts import text_parameters
from palimpsest.ops.prompts import prompts_for
from palimpsest.train.attacks import encoded
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator

Train = Literal["mlp", "mlp-final-attention", "mlp-attention", "attention", "all"]


@dataclass(kw_only=True)
class Prepared:
    """The pictures of all targets as latents, and which prompts may be said of each: rows of `prompts`."""

    pictures: Drawn
    prompts: list[str]
    rows: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class FewShot(FineTune):
    """Ascends the denoising loss of a few pictures of the concept under prompts that name it:

        loss = - mean (eps(x_t, c, t) - noise)^2 ,   x_t = alpha x0 + sigma noise,   x0 one of the pictures

    Only the text encoder learns, so the name's states leave for whatever the model already holds nearby; no
    destination is given.

    Args:
        train: "mlp" the feed-forward layers of every text block, "attention" the attention layers, "mlp-attention"
            both, "mlp-final-attention" the first and the last block's attention (the paper's choice), "all" everything.
        pictures: how many the model draws of each target where the caller has none.
        guidance, walk_steps: of that drawing.
        steps, lr, batch, rank: as in every fine-tuning.

    Data: "references", pictures of the target; of several targets, their labels are the targets' places in the request.
    Without them the model draws its own.
    Request.toward and Request.keep are not used: what the name becomes is left to the model.

    Cost per step: 1 forward with gradients; once, an encoding of the pictures (or the drawing of them).
    Differs from the paper: without pictures, drawn ones are used, where its code takes noise; no flips. Its public
        code means to freeze the other parts but misspells the attribute, so that all of the encoder is trained there:
        "all" is what it does, the default is what the paper says.
    Fails when: it goes on too long (the loss has no lower bound: the encoder breaks, and neighbours with it), or lr is
        too large; prompts that share the name's words lose them.
    Source: Fuchi & Takagi, "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning", BMVC 2024,
        arXiv 2405.07288.

    Example:
        >>> tower = Request(target=(Concept(name="Eiffel Tower"),))                      # doctest: +SKIP
        >>> patch = FewShot()(host, tower, data={"references": photos})                  # doctest: +SKIP
    """

    steps: int = 20
    lr: float = 1e-5
    batch: int = 2
    rank: int = 0
    train: Train = "mlp-final-attention"
    pictures: Count = 4
    guidance: float = 7.5
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "pictures": 4, "walk_steps": 3}

    card = Card(
        name="Few-shot erasing",
        title="Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning",
        year=2024,
        paper="https://arxiv.org/abs/2405.07288",
        family="fine-tuning",
        needs="Denoiser",
        claim="Erases a concept within 10 seconds from a few pictures, with what remains more natural.",
        reads=("references?",),
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        if self.train == "all":
            return text_parameters(host, "Few-shot erasing")
        blocks = host.parts("text_block")
        last = {name for name in blocks if f"{_encoder(name)}.{_number(name) + 1}" not in blocks}
        chosen = set()
        for name, block in blocks.items():
            for p, _ in block.named_parameters():
                attention, feed = "attn" in p.lower() or "attention" in p.lower(), "norm" not in p
                wanted = self.train in ("attention", "mlp-attention") or (
                    self.train == "mlp-final-attention" and name in last
                )
                if (attention and wanted) or (not attention and feed and self.train.startswith("mlp")):
                    chosen.add(f"{name}.{p}")
        if not chosen:
            raise Unsupported(f"Few-shot erasing trains a text encoder; {host.name} has no such parts.")
        return sorted(chosen)

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        prompts, rows = [], []
        for c in request.target:
            own = prompts_for(c)
            rows.append(list(range(len(prompts), len(prompts) + len(own))))
            prompts += own
        if "references" in data:
            pictures = _given(host, data["references"], len(request.target))
            return Prepared(pictures=pictures, prompts=prompts, rows=rows)
        found = []
        for k, own in enumerate(rows):
            draws = generator(seed, "pictures", k)
            asked = [prompts[i] for i in own]
            drawn = draw(host, asked, self.pictures, draws, steps=self.walk_steps, guidance=self.guidance)
            found.append(Drawn(row=torch.full((len(drawn),), k), x0=drawn.x0))
        pictures = Drawn(row=torch.cat([f.row for f in found]), x0=torch.cat([f.x0 for f in found]))
        return Prepared(pictures=pictures, prompts=prompts, rows=rows)

    def loss(self, step: TrainStep) -> Tensor:
        context: Prepared = step.context
        draws = step.generator()
        at = noised(step.host, context.pictures, step.batch, draws)
        said = [context.rows[int(k)] for k in at.row]
        rows = torch.tensor([own[int(torch.randint(len(own), (1,), generator=draws))] for own in said])
        x0 = step.host.denoise(at.x, at.t, encoded(step.host, context.prompts, rows))
        return -output_error(step.host, at.t, x0, at.x0).square().mean()

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr, betas=(0.9, 0.98), eps=1e-6)


def _given(host: Denoiser, references: Pictures, targets: int) -> Drawn:
    """The pictures as latents, each with its target's place in the request."""
    which = references.labels if targets > 1 else torch.zeros(len(references), dtype=torch.int64)
    if not len(which):
        raise BadRequest(f"The request has {targets} targets; label each reference with its target's place in it.")
    if int(which.max()) >= targets:
        raise BadRequest(f"A picture has label {int(which.max())}, but the request has {targets} targets.")
    return Drawn(row=which, x0=host.latents(references.pixels()))


def _encoder(block: str) -> str:
    return block.rpartition(".")[0]


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])
