"""Stable Diffusion 1.x and 2.x: a U-Net under a variance-preserving noise schedule, read by one CLIP encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import Unsupported
from palimpsest.core.host import Cond
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.hosts.pipelines import AUTOENCODER, CLIP, CLIP_TOKENIZER, NOISE_SCHEDULER, family
from palimpsest.hosts.text import read_clip


class SDHost(DiffusionHost):
    """Stable Diffusion 1.x and 2.x, trained to predict noise or velocity.

    `x = sqrt(abar(t)) * x0 + sqrt(1 - abar(t)) * noise` with t in 0 .. T - 1. Schedulers that keep x in another
    scaling (Euler, LMS, Heun, ...) scale it to this one before the network reads it; so do the steps of `walk`.
    """

    def __init__(self, pipeline: Any, *, name: str, folder: Path | None = None) -> None:
        super().__init__(pipeline, name=name, folder=folder)
        scheduler = type(pipeline.scheduler).__name__
        if scheduler not in NOISE_SCHEDULER or not hasattr(pipeline.scheduler, "alphas_cumprod"):
            raise Unsupported(
                f"{name} comes with a {scheduler}, under which pictures were not compared with the pipeline's; "
                f"supported are {', '.join(NOISE_SCHEDULER)}."
            )
        if self.denoiser.config.get("time_cond_proj_dim") is not None:
            raise Unsupported(f"{name} takes its guidance scale as an input (a latent consistency model).")
        abar = pipeline.scheduler.alphas_cumprod.double().cpu()
        if self.prediction == "epsilon" and not bool((abar > 0).all()):
            raise Unsupported(
                f"{name} predicts noise and its schedule ends without any signal (rescale_betas_zero_snr), where noise "
                "says nothing about the picture: every picture would be black. Set rescale_betas_zero_snr to false in "
                "scheduler_config.json, or prediction_type to what the model was trained for."
            )
        self._ratio = ((1 - abar) / abar).sqrt()  # (T,) sigma / alpha

    def _predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        x, states = x.to(self.dtype), cond.states.to(self.dtype)
        return self.denoiser(x, t.to(x.device), encoder_hidden_states=states, return_dict=False)[0]

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Between whole times, sigma / alpha is interpolated, as Euler-type schedulers do."""
        at = t.cpu().double().clamp(0, len(self._ratio) - 1)
        low, high = self._ratio[at.floor().long()], self._ratio[at.ceil().long()]
        part = at - at.floor()
        ratio = torch.where(part > 0, torch.lerp(low, high, part), low)
        abar = 1 / (1 + ratio**2)
        alpha, sigma = abar.sqrt(), torch.where(ratio.isinf(), 1.0, ratio * abar.sqrt())
        return alpha.float().view(-1, 1, 1, 1).to(self.device), sigma.float().view(-1, 1, 1, 1).to(self.device)

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform over the training times, int64."""
        return torch.randint(len(self._ratio), (n,), generator=generator).to(self.device)

    def _prediction(self) -> str:
        return self.pipeline.scheduler.config.get("prediction_type", "epsilon")

    def _read(self, prompts: Sequence[str], *, cut: bool) -> Cond:
        pipe = self.pipeline
        text = read_clip(pipe.tokenizer, pipe.text_encoder, prompts, cut=cut, spoken=self.spoken("text_encoder"))
        return Cond(states=text.states, lengths=text.lengths)

    def _set_timesteps(self, scheduler: Any, steps: int, height: int, width: int) -> None:
        scheduler.set_timesteps(steps, device=self.device)


FAMILY = family(
    "StableDiffusion",
    SDHost,
    unet=("UNet2DConditionModel",),
    text_encoder=CLIP,
    vae=AUTOENCODER,
    tokenizer=CLIP_TOKENIZER,
    scheduler=NOISE_SCHEDULER,
)
