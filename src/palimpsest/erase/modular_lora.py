"""Modular LoRA: what makes a model safe is a LoRA of its own, which later fine-tuning never touches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count
from palimpsest.core.host import Denoiser
from palimpsest.core.patch import Patch, compose
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import output_error
from palimpsest.train.asked import Asked
from palimpsest.train.benign import Benign, Captioned
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep

Train = Literal["kv", "xattn", "selfattn", "attention", "full"]


@dataclass(frozen=True, kw_only=True)
class ModularLoRA(FineTune):
    """Trains a safety LoRA on the model as it was published; a user's own LoRA is trained on the same base, and

        W = W_0 + dW_safety + dW_user

    is put together only for sampling (`a | b`, or `compose(a, b, overlap="sum")`), so that no gradient of the user's
    task passes through the safety LoRA. Its loss is ESD's, at x_t of a walk towards the concept c:

        loss = mean (eps(x_t, c, t) - [eps*(x_t, t) - eta (eps*(x_t, c, t) - eps*(x_t, t))])^2

    `after_benign` makes what the paper compares: fine-tuning on top of the safety LoRA, and beside it.

    Args:
        eta: strength of the negative guidance.
        train: which layers get a LoRA, as in ESD. rank: of the LoRA.
        guidance, walk_steps: of the walks. steps, lr, batch: as in every fine-tuning.

    Request.toward replaces the unconditional prediction as in ESD. Request.keep is not used.

    Cost per step: 2 forwards of the walk (each state of it trains one step) and 1 with gradients.
    Differs from the paper: it combines published erasures (ESD and SDD among them) with LoRA; here it is ESD. States
        come from walks of the untouched model. Defaults of rank, lr and steps are ours: no code is published.
    Fails when: the user's LoRA was trained for so long that the safety LoRA no longer fits the model it is added to.
    Source: Kim et al., "Safety Alignment Backfires: Preventing the Re-emergence of Suppressed Concepts in Fine-tuned
        Text-to-Image Diffusion Models", 2024, arXiv 2412.00357.

    Example:
        >>> safety = ModularLoRA(steps=300)(host, Request(target=(Concept(name="nudity"),)))    # doctest: +SKIP
        >>> both = compose(safety, users_lora, overlap="sum")                                     # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-4
    batch: int = 1
    rank: Count = 16
    eta: float = 1.0
    train: Train = "xattn"
    guidance: float = 3.0
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="Modular LoRA",
        title="Safety Alignment Backfires: Preventing the Re-emergence of Suppressed Concepts in Fine-tuned "
        "Text-to-Image Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2412.00357",
        family="fine-tuning",
        needs="Denoiser",
        claim="Benign fine-tuning brings erased concepts back; a safety LoRA that is trained apart keeps them out.",
    )

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Asked:
        return Asked.prepare(host, request, self.walk_steps, self.guidance)

    def loss(self, step: TrainStep) -> Tensor:
        asked: Asked = step.context
        at = asked.points(step)
        start = asked.start(step, at)
        x0 = step.host.denoise(at.x, at.t, asked.cond[at.row])
        steered = -self.eta * (at.x0_cond - at.x0_null)
        return output_error(step.host, at.t, x0 - start, steered).square().mean()


def after_benign(
    host: Denoiser, safety: Patch, pictures: Captioned, *, tuning: Benign | None = None, seed: int = 0
) -> dict[str, Patch]:
    """What benign fine-tuning leaves of an erasure, in the two orders that the paper compares.

    Args:
        safety: any patch without hooks that erases something; from ModularLoRA, or from another system.
        pictures: to fine-tune on; none of them should show what was erased.
        tuning: how; `Benign()` where none is given.

    Returns:
        "on top": the fine-tuning started from the erased model (published, then fine-tuned as usual).
        "beside": the fine-tuning started from the base, and the safety patch was added to it (modular).
        "alone": the fine-tuning without any erasure. Each is a patch for the base.

    Cost: two fine-tunings; the host is as it was afterwards.
    """
    tuning = tuning or Benign()
    request = Request.from_plain(safety.provenance["request"])
    shapes = {name: p.shape for name, p in host.root.named_parameters()}
    alone = tuning.tuned(host, request, pictures, seed=seed)
    with safety.applied(host):
        later = tuning.tuned(host, request, pictures, seed=seed)
    on_top = replace(later, base=safety.base)  # additive deltas: the same change, said of the base
    return {
        "on top": compose(safety, on_top, overlap="sum", shapes=shapes),
        "beside": compose(safety, alone, overlap="sum", shapes=shapes),
        "alone": alone,
    }
