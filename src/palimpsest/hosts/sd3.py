"""Stable Diffusion 3 and 3.5: joint attention over image and text; two CLIP encoders and an optional T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from palimpsest.core.host import Cond
from palimpsest.core.sampling import Sampling
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

T5_LENGTH = 256


class SD3Host(FlowHost):
    """Stable Diffusion 3 and 3.5.

    States are those of both CLIP encoders side by side, then those of T5 (zeros without T5); `lengths` count the
    CLIP tokens. `tokens` cuts both blocks at their own longest prompt.
    """

    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    text_layer = -2
    family_defaults = Sampling(steps=28, guidance=7.0)

    def __init__(self, pipeline: Any, *, name: str, folder: Path | None = None) -> None:
        super().__init__(pipeline, name=name, folder=folder)
        self._zeros = 0
        if pipeline.text_encoder_3 is None:  # how many zero states stand for T5 differs between diffusers versions
            with torch.no_grad(), self._visitors.visit(*self.encoders):
                states = pipeline.encode_prompt("", "", "", device=self.device, do_classifier_free_guidance=False)[0]
            self._zeros = states.shape[1] - pipeline.tokenizer_max_length

    def _predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.pooled is not None, "SD3 needs the pooled states that its encode gives"
        return self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=t.to(x.device),
            encoder_hidden_states=cond.states.to(self.dtype),
            pooled_projections=cond.pooled.to(self.dtype),
            return_dict=False,
        )[0]

    def _read(self, prompts: Sequence[str], *, cut: bool) -> Cond:
        pipe, layer, spoken = self.pipeline, self.text_layer, self.spoken
        first = read_clip(
            pipe.tokenizer, pipe.text_encoder, prompts, cut=cut, layer=layer, spoken=spoken("text_encoder")
        )
        second = read_clip(
            pipe.tokenizer_2, pipe.text_encoder_2, prompts, cut=cut, layer=layer, spoken=spoken("text_encoder_2")
        )
        clip = torch.cat([first.states, second.states], dim=-1)
        further: dict[int, Tensor] = {}
        if pipe.text_encoder_3 is None:
            width = self.denoiser.config.joint_attention_dim
            t5 = clip.new_zeros(len(clip), 0 if cut else self._zeros, width)
        else:
            third = spoken("text_encoder_3")
            t5, lengths = read_t5(
                pipe.tokenizer_3, pipe.text_encoder_3, prompts, cut=cut, longest=T5_LENGTH, spoken=third
            )
            further[clip.shape[1]] = lengths
        clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Cond(
            states=torch.cat([clip, t5.to(clip.dtype)], dim=1),
            lengths=first.lengths,
            pooled=torch.cat([first.pooled, second.pooled], dim=-1),
            further=further,
        )

    def _set_timesteps(self, scheduler: Any, steps: int, height: int, width: int) -> None:
        if scheduler.config.get("use_dynamic_shifting"):
            scheduler.set_timesteps(steps, device=self.device, mu=self._shift_of_size(height, width, 1.16))
        else:
            scheduler.set_timesteps(steps, device=self.device)


FAMILY = family(
    "StableDiffusion3",
    SD3Host,
    transformer=("SD3Transformer2DModel",),
    text_encoder=CLIP,
    text_encoder_2=CLIP,
    text_encoder_3=T5,
    vae=AUTOENCODER,
    tokenizer=CLIP_TOKENIZER,
    tokenizer_2=CLIP_TOKENIZER,
    tokenizer_3=T5_TOKENIZER,
    scheduler=FLOW_SCHEDULER,
)
