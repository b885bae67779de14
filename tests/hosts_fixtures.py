"""Small random pipelines of every family, built from configurations and saved as diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 16  # of every text encoder
PROMPTS = ["a red star", "two houses, one blue", "moon"]
SEEDS = [3, 11, 2]
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def clip_tokenizer(folder: Path, length: int = 24) -> CLIPTokenizer:
    """Every byte is a token: enough to tell prompts apart and to give them different lengths."""
    folder.mkdir(parents=True)
    letters = [chr(b) for b in range(33, 127)]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokens = [*letters, *(c + "</w>" for c in letters), special["bos_token"], special["eos_token"]]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ns t\nst a\nsta r</w>\n")
    vocabulary = {t: i for i, t in enumerate([*tokens, "st", "sta", "star</w>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {**special, "unk_token": "<|endoftext|>", "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def clip_config(tokenizer: CLIPTokenizer, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def autoencoder(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        **more,
    )


def unet(**more: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**{**settings, **more})


def sd_folder(folder: Path, prediction: str = "epsilon", scheduler: type = DDIMScheduler, **unet_more: Any) -> Path:
    """A random Stable Diffusion pipeline; its pictures change much with the prompt, so that a test can fail."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder.with_name(folder.name + "_tokenizer"))
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(**unet_more),
        scheduler=DDIMScheduler(**VP, prediction_type=prediction, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
