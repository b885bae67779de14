"""Small random pipelines of every family, built from configurations and saved as diffusers folders."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from palimpsest.core.host import Guide, Step
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.hosts.flux import FluxHost
from palimpsest.hosts.load import load

WIDTH = 16  # of every text encoder
TOLERANCE = 1e-4  # of pixels
SIZE = 16
STEPS = 3
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


def t5_tokenizer(folder: Path) -> T5TokenizerFast:
    """Every letter is a token."""
    folder.mkdir(parents=True)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -4.0) for c in "▁abcdefghijklmnopqrstuvwxyz,.")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    settings |= {"model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return T5TokenizerFast.from_pretrained(folder)


def t5_encoder(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    )


def sd_pipeline(folder: Path, prediction: str = "epsilon", **unet_more: Any) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(folder / "tokens")
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(**unet_more),
        scheduler=DDIMScheduler(**VP, prediction_type=prediction, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    tokenizer = clip_tokenizer(folder / "tokens")
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, projection_dim=24)),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(folder / "tokens_2"),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            transformer_layers_per_block=(1, 2),
        ),
        scheduler=EulerDiscreteScheduler(
            **{k: v for k, v in VP.items() if k != "clip_sample"}, timestep_spacing="leading", steps_offset=1
        ),
    )


def sd3_pipeline(folder: Path, t5: bool = True) -> StableDiffusion3Pipeline:
    tokenizer = clip_tokenizer(folder / "tokens")
    third = t5_tokenizer(folder / "tokens_3") if t5 else None
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=48,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
        ),
        vae=autoencoder(8, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer, projection_dim=24)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, projection_dim=24)),
        text_encoder_3=t5_encoder(len(third)) if third is not None else None,
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(folder / "tokens_2"),
        tokenizer_3=third,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux_pipeline(folder: Path, distilled: bool = True) -> FluxPipeline:
    tokenizer, second = clip_tokenizer(folder / "tokens"), t5_tokenizer(folder / "tokens_2")
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=distilled,
        ),
        vae=autoencoder(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=t5_encoder(len(second)),
        tokenizer=tokenizer,
        tokenizer_2=second,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=distilled, shift=3.0 if distilled else 1.0),
    )
    return pipeline


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "sd": sd_pipeline,
    "sd_v": lambda folder: sd_pipeline(folder, "v_prediction"),
    "sdxl": sdxl_pipeline,
    "sd3": sd3_pipeline,
    "sd3_without_t5": lambda folder: sd3_pipeline(folder, t5=False),
    "flux": flux_pipeline,
    "flux_undistilled": lambda folder: flux_pipeline(folder, distilled=False),
}
CLASSES: dict[str, Any] = {
    "sd": StableDiffusionPipeline,
    "sd_v": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "sd3_without_t5": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "flux_undistilled": FluxPipeline,
}


def build(family: str, folder: Path) -> Path:
    """A random pipeline of this family as a diffusers folder. Its weights depend on the family's name alone."""
    torch.manual_seed(zlib.crc32(family.encode()))
    pipeline = BUILDERS[family](folder / f"{family}_parts")
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            _liven(module)
    pipeline.save_pretrained(folder / family)
    return folder / family


def _liven(module: torch.nn.Module) -> None:
    """Larger weights: prompts must change the pictures visibly, or tests of equality could not fail."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                table = name.endswith(("token_embedding.weight", "shared.weight"))
                scale = 0.3 if "norm" in name or "proj_out" in name else 1.0  # large modulations make chaos
                parameter.normal_(std=1.0 if table else scale * parameter[0].numel() ** -0.5)


@cache
def folder_of(family: str) -> Path:
    """The same, built once in each process and removed at its end."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(family, folder)


def pipeline_of(family: str, scheduler: type | None = None, **scheduler_more: Any) -> Any:
    """A fresh copy as plain diffusers loads it, with another scheduler where one is named."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3_without_t5" else {}
    pipeline = CLASSES[family].from_pretrained(folder_of(family), low_cpu_mem_usage=False, **absent)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **scheduler_more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh_host(family: str) -> DiffusionHost:
    """A host of its own, for tests that change it."""
    host = load(folder_of(family))
    assert isinstance(host, DiffusionHost)
    if isinstance(host, FluxHost):  # Flux's pipeline draws at 1024 pixels whatever a folder says, the others at 16
        host.pipeline.default_sample_size = 8
    return host


@cache
def host_of(family: str) -> DiffusionHost:
    """One host for all tests that leave it as it is."""
    return fresh_host(family)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((a - b).detach().abs().max())


def by_diffusers(pipeline: Any, **settings: Any) -> Tensor:
    rows = [
        pipeline(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            **{"num_inference_steps": STEPS, "height": SIZE, "width": SIZE, "output_type": "pt", **settings},
        ).images[0]
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    return torch.stack(rows)


def as_usual() -> Guide:
    """Classifier-free guidance, written on x0."""

    def guide(step: Step) -> Tensor:
        if not isinstance(step.host, DiffusionHost) or not step.host.guided(step.guidance):
            return step.x0(step.cond)[0]
        cond, null = step.x0(step.cond, step.null)
        return null + step.guidance * (cond - null)

    return guide
