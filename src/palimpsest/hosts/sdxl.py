"""Stable Diffusion XL: two CLIP encoders, a pooled state and the picture's size as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.core.host import Cond
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.pipelines import AUTOENCODER, CLIP, CLIP_TOKENIZER, NOISE_SCHEDULER, family
from palimpsest.hosts.sd import SDHost
from palimpsest.hosts.text import read_clip


class SDXLHost(SDHost):
    """Stable Diffusion XL and its relatives, without a refiner.

    The size inputs are those of an uncropped picture of the size that is drawn, as the pipeline sets them.
    """

    encoders = ("text_encoder", "text_encoder_2")
    text_layer = -2
    family_defaults = Sampling(steps=50, guidance=5.0)

    def _predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.pooled is not None, "SDXL needs the pooled states that its encode gives"
        height, width = (side * self.pipeline.vae_scale_factor for side in x.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=x.device)
        return self.denoiser(
            x.to(self.dtype),
            t.to(x.device),
            encoder_hidden_states=cond.states.to(self.dtype),
            added_cond_kwargs={"text_embeds": cond.pooled.to(self.dtype), "time_ids": size.expand(len(x), 6)},
            return_dict=False,
        )[0]

    def null(self, n: int, negative: str = "") -> Cond:
        """Where the model was trained with zeros in place of the empty prompt, the empty negative prompt is zeros."""
        cond = super().null(n, negative)
        if negative or not self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            return cond
        assert cond.pooled is not None
        return replace(cond, states=torch.zeros_like(cond.states), pooled=torch.zeros_like(cond.pooled))

    def _read(self, prompts: Sequence[str], *, cut: bool) -> Cond:
        pipe, layer, spoken = self.pipeline, self.text_layer, self.spoken
        first = read_clip(
            pipe.tokenizer, pipe.text_encoder, prompts, cut=cut, layer=layer, spoken=spoken("text_encoder")
        )
        second = read_clip(
            pipe.tokenizer_2, pipe.text_encoder_2, prompts, cut=cut, layer=layer, spoken=spoken("text_encoder_2")
        )
        states = torch.cat([first.states, second.states], dim=-1)
        return Cond(states=states, lengths=second.lengths, pooled=second.pooled)


FAMILY = family(
    "StableDiffusionXL",
    SDXLHost,
    unet=("UNet2DConditionModel",),
    text_encoder=CLIP,
    text_encoder_2=CLIP,
    vae=AUTOENCODER,
    tokenizer=CLIP_TOKENIZER,
    tokenizer_2=CLIP_TOKENIZER,
    scheduler=NOISE_SCHEDULER,
)
