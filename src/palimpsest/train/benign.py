"""What a user does to a model next: plain fine-tuning on pictures that have nothing to do with what was erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Trace
from palimpsest.ops.drawn import Drawn, noised
from palimpsest.ops.guidance import output_error
from palimpsest.ops.parts import parameters
from palimpsest.train.loop import TrainStep
from palimpsest.train.training import Training

Train = Literal["kv", "xattn", "selfattn", "attention", "full"]


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """n pictures: `prompts`, and of each picture its clean latents and which prompt it belongs to."""

    prompts: Sequence[str]
    pictures: Drawn


@dataclass(frozen=True, kw_only=True)
class Benign(Training):
    """The denoising loss on given pictures, as every fine-tuning script has it:

        loss = mean (eps(alpha x0 + sigma noise, c, t) - noise)^2

    The request is not used; the data are `Captioned` pictures.

    Args:
        train: which layers, as in ESD. steps, lr, batch, rank: as in every fine-tuning; rank 4 as diffusers' script.

    Cost per step: 1 forward with gradients.
    """

    steps: int = 1000
    lr: float = 1e-4
    batch: int = 1
    rank: int = 4
    train: Train = "attention"

    def trains(self, host: Denoiser) -> Sequence[str]:
        return parameters(host, self.train, "Fine-tuning")

    def prepare(
        self, host: Denoiser, request: Request, *, data: Captioned, seed: int, trace: Trace
    ) -> tuple[Captioned, Cond]:
        return data, host.encode(list(data.prompts))

    def loss(self, step: TrainStep) -> Tensor:
        data, cond = step.context
        at = noised(step.host, data.pictures, step.batch, step.generator())
        x0 = step.host.denoise(at.x, at.t, cond[at.row])
        return output_error(step.host, at.t, x0, at.x0).square().mean()

    def tuned(
        self, host: Denoiser, request: Request, pictures: Captioned, *, seed: int = 0, trace: Trace | None = None
    ) -> Patch:
        """What this fine-tuning does to a model, which is unchanged afterwards."""
        trace, base = trace or Trace(), host.fingerprint()
        with trace.watching(host):
            fitted = self.fit(host, request, data=pictures, seed=seed, trace=trace)
        cost = {"seconds": trace.seconds, "forwards": dict(trace.forwards), "peak_bytes": trace.peak_bytes}
        return Patch(
            base=base, deltas=fitted.deltas, provenance={"parameters": self.parameters(), "seed": seed}, cost=cost
        )
