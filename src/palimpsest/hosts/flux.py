"""Flux.1: joint and single-stream attention over T5 states and 2x2 packed latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.host import Cond
from palimpsest.hosts.flow import FlowHost
from palimpsest.hosts.pipelines import (
    AUTOENCODER,
    CLIP,
    CLIP_TOKENIZER,
    FLOW_SCHEDULER,
    T5,
    T5_TOKENIZER,
    family,
)
from palimpsest.hosts.text import read_clip, read_t5

T5_LENGTH = 512


class FluxHost(FlowHost):
    """Flux.1 dev, schnell and their relatives. Latents are (n, c, h, w) outside and packed only for the network.

    Guidance-distilled models take the guidance scale as an input (`cond.extra["guidance"]`, (n,)); sampling them at
    any scale runs no unconditional branch. The others use classifier-free guidance, by default none (scale 1).
    """

    encoders = ("text_encoder", "text_encoder_2")
    packing = 2

    def __init__(self, pipeline: Any, *, name: str, folder: Path | None = None) -> None:
        super().__init__(pipeline, name=name, folder=folder)
        self.defaults = replace(self.defaults, guidance=3.5 if self.distilled else 1.0)

    @property
    def distilled(self) -> bool:
        """Whether the guidance scale is an input of the network."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def default_size(self) -> int:
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def guided(self, guidance: float) -> bool:
        return not self.distilled and super().guided(guidance)

    def _predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.pooled is not None, "Flux needs the pooled states that its encode gives"
        n, _, h, w = x.shape
        rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3)
        out = self.denoiser(
            hidden_states=pack(x.to(self.dtype)),
            timestep=t.expand(n).to(x.device, self.dtype) / self._train_times,
            guidance=cond.extra["guidance"] if self.distilled else None,
            pooled_projections=cond.pooled.to(self.dtype),
            encoder_hidden_states=cond.states.to(self.dtype),
            txt_ids=torch.zeros(cond.states.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=places.to(x.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(out, h, w)

    def _conditions(self, prompts: Sequence[str], negative: str, guidance: float) -> tuple[Cond, Cond]:
        cond, null = super()._conditions(prompts, negative, guidance)
        return self._at(cond, guidance), self._at(null, guidance)

    def _read(self, prompts: Sequence[str], *, cut: bool) -> Cond:
        pipe, first, second = self.pipeline, self.spoken("text_encoder"), self.spoken("text_encoder_2")
        states, lengths = read_t5(
            pipe.tokenizer_2, pipe.text_encoder_2, prompts, cut=cut, longest=T5_LENGTH, spoken=second
        )
        pooled = read_clip(pipe.tokenizer, pipe.text_encoder, prompts, cut=cut, spoken=first).pooled
        return self._at(Cond(states=states, lengths=lengths, pooled=pooled), self.defaults.guidance or 1.0)

    def _at(self, cond: Cond, guidance: float) -> Cond:
        if not self.distilled:
            return cond
        return replace(cond, extra={"guidance": torch.full((len(cond),), float(guidance), device=self.device)})

    def _set_timesteps(self, scheduler: Any, steps: int, height: int, width: int) -> None:
        even = None if scheduler.config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        mu = self._shift_of_size(height, width, 1.15)
        if even is None:
            scheduler.set_timesteps(steps, device=self.device, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=even, device=self.device, mu=mu)


def pack(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h/2 * w/2, 4 c): each 2x2 square of latents becomes one token."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`."""
    n, _, d = tokens.shape
    return tokens.view(n, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, d // 4, h, w)


FAMILY = family(
    "Flux",
    FluxHost,
    transformer=("FluxTransformer2DModel",),
    text_encoder=CLIP,
    text_encoder_2=T5,
    vae=AUTOENCODER,
    tokenizer=CLIP_TOKENIZER,
    tokenizer_2=T5_TOKENIZER,
    scheduler=FLOW_SCHEDULER,
)
