"""InvDiff: finds the groups that a model serves unequally and trains them towards equal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import NonNegative, Several
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, draw, noise_errors, noised
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import asking
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep, minimise
from palimpsest.train.randomness import generator

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the training times at which a picture's loss is read


@dataclass(kw_only=True)
class Grouped:
    """Training pictures with their encoded captions and how much each belongs to each group (n, groups)."""

    pictures: Drawn
    cond: Cond
    share: Tensor


@dataclass(frozen=True, kw_only=True)
class InvDiff(FineTune):
    """Debiases without labels of the bias: pictures are parted into groups of unequal loss, then losses are evened out.

    With l_i the denoising loss of picture i under the untouched model, and W (n, groups) rows of non-negative shares
    that sum to 1, the groups are

        maximise over W  std over g of (sum_i W_ig l_i / sum_i W_ig) + filled min over i, g of W_ig l_i

    and a low-rank module beside the frozen model is trained on batches with the same pictures' losses m_i:

        L_g = sum_i W_ig m_i / sum_i W_ig;    loss = mean over g of L_g + even var over g of L_g

    Args:
        groups, filled, group_steps, group_lr: of the parting; the authors' values.
        even: weight of the variance (their lambda).
        pictures, guidance, walk_steps: of the pictures that the model draws itself where no data is given.
        steps, lr, batch, rank: of the module: a low-rank change of the attention layers.

    Request.target says which prompts' pictures are drawn; keep and toward are not used. Data: "pictures" with
    captions, e.g. of a small set that is balanced enough.

    Cost: 5 forwards a picture; then 1 with gradients a step; sampling costs nothing more, since the module is a LoRA.
    Differs from the paper: the module is a low-rank change, where the paper adds the output of a second, smaller
        U-Net; losses are read at five fixed times with one noise, where the code draws one time a picture.
    Fails when: the data lacks the rare group altogether, as pictures drawn by the biased model itself may; loss differs
        for other reasons than the bias (cluttered pictures), which then become the groups.
    Source: Hou et al., "InvDiff: Invariant Guidance for Bias Mitigation in Diffusion Models", KDD 2025,
        arXiv 2412.08480.

    Example:
        >>> doctors = Request(target=(Concept(name="doctor"),))                          # doctest: +SKIP
        >>> patch = InvDiff()(host, doctors, data={"pictures": photos})                  # doctest: +SKIP
    """

    steps: int = 10_000
    lr: float = 1e-4
    batch: int = 64
    rank: int = 4
    groups: Several = 8
    filled: float = 3.0
    group_steps: int = 500
    group_lr: float = 0.01
    even: NonNegative = 1.0
    pictures: Several = 1000
    guidance: float = 7.5
    walk_steps: int = 50

    train: ClassVar = "attention"
    quick: ClassVar = {"steps": 2, "batch": 2, "groups": 2, "pictures": 24, "walk_steps": 3}

    card = Card(
        name="InvDiff",
        title="InvDiff: Invariant Guidance for Bias Mitigation in Diffusion Models",
        year=2025,
        paper="https://arxiv.org/abs/2412.08480",
        family="debiasing",
        needs="Denoiser",
        claim="Reduces biases on three benchmarks without labels of the bias, while keeping image quality.",
        reads=("pictures?",),
    )

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Grouped:
        if "pictures" not in data:
            captions = [p for c in request.target for p in asking(c)]
            draws = generator(seed, "pictures")
            pictures = draw(host, captions, self.pictures, draws, steps=self.walk_steps, guidance=self.guidance)
        else:
            captions = data["pictures"].captions
            if not captions:
                raise BadRequest("InvDiff learns how well each picture follows its caption; give them with captions.")
            x0 = torch.cat([host.latents(part) for part in data["pictures"].pixels().split(32)])
            pictures = Drawn(row=torch.arange(len(x0)), x0=x0)
        cond = host.encode(list(captions))
        loss = noise_errors(host, pictures.x0, cond, pictures.row[:, None], TIMES, generator(seed, "noise"))[:, 0]
        share = part(
            loss,
            self.groups,
            filled=self.filled,
            steps=self.group_steps,
            lr=self.group_lr,
            generator=generator(seed, "groups"),
        )
        means = (share * loss[:, None]).sum(0) / share.sum(0)
        trace.log.append((0, "spread of the groups' losses", float(means.std())))
        return Grouped(pictures=pictures, cond=cond, share=share)

    def loss(self, step: TrainStep) -> Tensor:
        held = step.context
        draws = step.generator()
        chosen = torch.randint(len(held.pictures), (step.batch,), generator=draws)
        drawn = Drawn(row=chosen, x0=held.pictures.x0[chosen])  # the row now says which picture, for its shares
        at = noised(step.host, drawn, step.batch, draws)
        x0 = step.host.denoise(at.x, at.t, held.cond[held.pictures.row[at.row]])
        each = output_error(step.host, at.t, x0, at.x0).square().mean((1, 2, 3))
        mean = group_means(each, held.share[at.row].to(each.device))
        step.log("variance of the groups' losses", float(mean.detach().var()) if len(mean) > 1 else 0.0)
        return mean.mean() + self.even * mean.var() if len(mean) > 1 else mean.mean()


def group_means(losses: Tensor, share: Tensor) -> Tensor:
    """(g,) mean loss of each group that the batch has: losses (n,), share (n, groups)."""
    size = share.sum(0)
    return ((losses[:, None] * share).sum(0) / size.clamp(min=1e-9))[size > 1e-9]


def part(losses: Tensor, groups: int, *, filled: float, steps: int, lr: float, generator: torch.Generator) -> Tensor:
    """(n, groups) shares that make the groups' mean losses as unequal as they can be; Adam with projection."""
    w = torch.rand(len(losses), groups, generator=generator).requires_grad_(True)

    def even(k: int) -> Tensor:
        each = losses[:, None] * w
        mean = each.sum(0) / w.sum(0).clamp(min=1e-9)
        return -mean.std() - filled * each.min()

    def projected(k: int) -> None:
        w.clamp_(min=0)
        w.copy_(w / w.sum(1, keepdim=True).clamp(min=1e-9))

    minimise({"shares": w}, even, steps=steps, optimiser=torch.optim.Adam([w], lr=lr), after=projected)
    return w.detach()
