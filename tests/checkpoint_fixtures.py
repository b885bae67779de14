"""Miniature pipelines whose facts are those of their families, and the same as checkpoints of one piece."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from hosts_fixtures import VP, _liven, clip_tokenizer, t5_tokenizer

WIDTH = 64  # of text encoders: one head
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
Named = dict[str, Tensor]


def text_encoder(cls: Any, tokenizer: Any, act: str, layers: int = 3) -> Any:
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=80,
            num_hidden_layers=layers,
            num_attention_heads=1,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=act,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_encoder(vocabulary: int) -> T5EncoderModel:
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    return T5EncoderModel(T5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **sizes))


def autoencoder(channels: int, quant: bool = True, **latents: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **latents,
    )


def unet(channels: tuple[int, int], depths: tuple[int, int], cross: int, **more: Any) -> diffusers.UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths)
    up = tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths))
    return diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=cross,
        transformer_layers_per_block=tuple(max(1, d) for d in depths),
        **more,
    )


PNDM = {k: v for k, v in VP.items() if k != "clip_sample"}
PNDM |= {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
NONE: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}


def sd1(folder: Path) -> Any:
    tokens = clip_tokenizer(folder / "tokens")
    return diffusers.StableDiffusionPipeline(
        unet=unet((32, 64), (1, 0), WIDTH, attention_head_dim=8, sample_size=64),
        vae=autoencoder(4),
        text_encoder=text_encoder(CLIPTextModel, tokens, "quick_gelu"),
        tokenizer=tokens,
        scheduler=diffusers.PNDMScheduler(**PNDM),
        requires_safety_checker=False,
        **NONE,
    )


def sd2(folder: Path) -> Any:
    tokens = clip_tokenizer(folder / "tokens")
    tokens.pad_token = "!"
    settings = {"use_linear_projection": True, "upcast_attention": True, "sample_size": 96}
    return diffusers.StableDiffusionPipeline(
        unet=unet((64, 128), (1, 0), WIDTH, attention_head_dim=(1, 2), **settings),
        vae=autoencoder(4),
        text_encoder=text_encoder(CLIPTextModel, tokens, "gelu", layers=23),
        tokenizer=tokens,
        scheduler=diffusers.DDIMScheduler(**VP, steps_offset=1, set_alpha_to_one=False, prediction_type="v_prediction"),
        requires_safety_checker=False,
        **NONE,
    )


def sdxl(folder: Path) -> Any:
    tokens, second = clip_tokenizer(folder / "tokens"), clip_tokenizer(folder / "tokens_2")
    second.pad_token = "!"
    return diffusers.StableDiffusionXLPipeline(
        unet=unet(
            (64, 128),
            (0, 2),
            2 * WIDTH,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=WIDTH + 6 * 256,
            sample_size=128,
        ),
        vae=autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_encoder(CLIPTextModel, tokens, "quick_gelu"),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, second, "gelu"),
        tokenizer=tokens,
        tokenizer_2=second,
        scheduler=diffusers.EulerDiscreteScheduler(
            **{k: v for k, v in VP.items() if k != "clip_sample"}, steps_offset=1, timestep_spacing="leading"
        ),
    )


def sd3(folder: Path) -> Any:
    tokens, second = clip_tokenizer(folder / "tokens"), clip_tokenizer(folder / "tokens_2")
    second.pad_token = "!"
    third = t5_tokenizer(folder / "tokens_3")
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=1,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=64,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        vae=autoencoder(4, quant=False, scaling_factor=1.5305, shift_factor=0.0609, force_upcast=True),
        text_encoder=text_encoder(CLIPTextModelWithProjection, tokens, "quick_gelu"),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, second, "gelu"),
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(third), d_model=2 * WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=2, dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        ),
        tokenizer=tokens,
        tokenizer_2=second,
        tokenizer_3=third,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    tokens, second = clip_tokenizer(folder / "tokens"), t5_tokenizer(folder / "tokens_2")
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=32,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(16, 56, 56),
            guidance_embeds=True,
        ),
        vae=autoencoder(4, quant=False, scaling_factor=0.3611, shift_factor=0.1159, force_upcast=True),
        text_encoder=text_encoder(CLIPTextModel, tokens, "quick_gelu"),
        text_encoder_2=t5_encoder(len(second)),
        tokenizer=tokens,
        tokenizer_2=second,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


# -- the names that original checkpoints give ------------------------------------------------------------------


def unet_names(state: Mapping[str, Tensor], layers: int = 1) -> Named:
    per = layers + 1  # blocks of a level, and the change of size
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }

    def of(name: str) -> str:
        if match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
            way, level, what, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            first = 1 + level * per if way == "down" else level * per
            base = f"{'input' if way == 'down' else 'output'}_blocks."
            if what == "downsamplers":
                return f"{base}{first + layers}.0.op.{rest.removeprefix('conv.')}"
            if what == "upsamplers":
                has = any(key.startswith(f"up_blocks.{level}.attentions") for key in state)
                return f"{base}{first + layers}.{2 if has else 1}.{rest}"
            new = f"{base}{first + index}.{0 if what == 'resnets' else 1}.{rest}"
        else:
            old = next(key for key in fixed if name.startswith(key + "."))
            new = fixed[old] + name[len(old) :]
        if ".resnets." not in name:
            return new
        part = next(key for key in RESNET if f".{key}." in new)
        return new.replace(f".{part}.", f".{RESNET[part]}.")

    return {f"model.diffusion_model.{of(name)}": value for name, value in state.items()}


def vae_names(state: Mapping[str, Tensor], levels: int = 2) -> Named:
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    named = {}
    for name, value in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in new:
            part = next(key for key in attention if f".{key}." in new)
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace(f".{part}.", f".{attention[part]}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        named[f"first_stage_model.{new}"] = value
    return named


def clip_names(state: Mapping[str, Tensor], prefix: str) -> Named:
    return {prefix + (k if k.startswith(("text_model.", "text_p")) else f"text_model.{k}"): v for k, v in state.items()}


def open_clip_names(state: Mapping[str, Tensor], prefix: str, more: int = 0) -> Named:
    """`more`: copies of the last layer behind it, which nothing reads."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    named = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        named["text_projection"] = state["text_projection.weight"].T
    else:
        named["text_projection"] = torch.eye(len(state["final_layer_norm.bias"]))
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    for i in range(layers + more):
        old, new = f"encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = [state[f"{old}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            named[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
            named[f"{new}attn.out_proj.{kind}"] = state[f"{old}self_attn.out_proj.{kind}"]
            for mine, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc")):
                named[f"{new}{theirs}.{kind}"] = state[f"{old}{mine}.{kind}"]
            named[f"{new}mlp.c_proj.{kind}"] = state[f"{old}mlp.fc2.{kind}"]
    return {prefix + key: value for key, value in named.items()}


def t5_names(state: Mapping[str, Tensor]) -> Named:
    own = {key: value for key, value in state.items() if "embed_tokens" not in key}
    return {f"text_encoders.t5xxl.transformer.{key}": value for key, value in own.items()}


def _swapped(value: Tensor) -> Tensor:
    first, second = value.chunk(2)
    return torch.cat([second, first])


def sd3_names(state: Mapping[str, Tensor]) -> Named:
    fixed = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks."))
    block = {
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
    }
    merged = {
        "attn.to_": ("x_block.attn.qkv", "qkv"),
        "attn2.to_": ("x_block.attn2.qkv", "qkv"),
        "attn.add_": ("context_block.attn.qkv", "qkv"),
    }
    named = {"pos_embed": state["pos_embed.pos_embed"]}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in fixed:
            named[f"{fixed[stem]}.{kind}"] = _swapped(value) if stem == "norm_out.linear" else value
        if match := re.match(r"transformer_blocks\.(\d+)\.(.*)", stem):
            i, rest = int(match[1]), match[2]
            if rest in block:
                swap = rest == "norm1_context.linear" and i == last
                named[f"joint_blocks.{i}.{block[rest]}.{kind}"] = _swapped(value) if swap else value
            for start, (whole, letters) in merged.items():
                if rest in (f"{start}q", f"{start}q_proj"):
                    tail = rest[len(start) + 1 :]
                    parts = [state[f"transformer_blocks.{i}.{start}{letter}{tail}.{kind}"] for letter in letters]
                    named[f"joint_blocks.{i}.{whole}.{kind}"] = torch.cat(parts)
    return {f"model.diffusion_model.{key}": value for key, value in named.items()}


def flux_names(state: Mapping[str, Tensor], prefix: str = "model.diffusion_model.") -> Named:
    fixed = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    double = {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
    }
    scales = {
        "attn.norm_q": "img_attn.norm.query_norm.scale",
        "attn.norm_k": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
    }
    named: Named = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in fixed:
            named[f"{fixed[stem]}.{kind}"] = _swapped(value) if stem == "norm_out.linear" else value
        if match := re.match(r"transformer_blocks\.(\d+)\.(.*)", stem):
            old, new, rest = f"transformer_blocks.{match[1]}.", f"double_blocks.{match[1]}.", match[2]
            if rest in double:
                named[f"{new}{double[rest]}.{kind}"] = value
            if rest in scales:
                named[f"{new}{scales[rest]}"] = value
            if rest == "attn.to_q":
                named[f"{new}img_attn.qkv.{kind}"] = torch.cat([state[f"{old}attn.to_{p}.{kind}"] for p in "qkv"])
            if rest == "attn.add_q_proj":
                parts = [state[f"{old}attn.add_{p}_proj.{kind}"] for p in "qkv"]
                named[f"{new}txt_attn.qkv.{kind}"] = torch.cat(parts)
        if match := re.match(r"single_transformer_blocks\.(\d+)\.(.*)", stem):
            old, new, rest = f"single_transformer_blocks.{match[1]}.", f"single_blocks.{match[1]}.", match[2]
            if rest == "norm.linear":
                named[f"{new}modulation.lin.{kind}"] = value
            if rest == "proj_out":
                named[f"{new}linear2.{kind}"] = value
            if rest == "attn.to_q":
                parts = [state[f"{old}attn.to_{p}.{kind}"] for p in "qkv"]
                named[f"{new}linear1.{kind}"] = torch.cat([*parts, state[f"{old}proj_mlp.{kind}"]])
            if rest in ("attn.norm_q", "attn.norm_k"):
                named[f"{new}norm.{'query' if rest.endswith('q') else 'key'}_norm.scale"] = value
    return {prefix + key: value for key, value in named.items()}


def _states(pipeline: Any) -> dict[str, Named]:
    parts = {k: v for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module)}
    return {name: dict(part.state_dict()) for name, part in parts.items()}


def in_one_piece(family: str, pipeline: Any) -> Named:
    """The tensors of a pipeline under the names of its family's original checkpoints."""
    s = _states(pipeline)
    if family == "sd1":
        return {
            **unet_names(s["unet"]),
            **vae_names(s["vae"]),
            **clip_names(s["text_encoder"], "cond_stage_model.transformer."),
        }
    if family == "sd2":
        text = open_clip_names(s["text_encoder"], "cond_stage_model.model.", more=1)
        return {**unet_names(s["unet"]), **vae_names(s["vae"]), **text}
    if family == "sdxl":
        return {
            **unet_names(s["unet"]),
            **vae_names(s["vae"]),
            **clip_names(s["text_encoder"], "conditioner.embedders.0.transformer."),
            **open_clip_names(s["text_encoder_2"], "conditioner.embedders.1.model."),
        }
    clip_l = clip_names(s["text_encoder"], "text_encoders.clip_l.transformer.")
    if family == "sd3":
        clip_g = clip_names(s["text_encoder_2"], "text_encoders.clip_g.transformer.")
        whole = {**sd3_names(s["transformer"]), **clip_l, **clip_g, **t5_names(s["text_encoder_3"])}
        return {**whole, **vae_names(s["vae"])}
    return {**flux_names(s["transformer"]), **clip_l, **t5_names(s["text_encoder_2"]), **vae_names(s["vae"])}


def header_alone(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """A safetensors file of half precision that is as large as its tensors and takes no space: nothing but its header
    is written."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def shapes_of(cls: Any, config: Mapping[str, Any]) -> Named:
    """The tensors of a model of true size, without memory."""
    with torch.device("meta"):
        built = cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(cls.config_class(**config))
    return dict(built.state_dict())


BUILDERS: dict[str, Callable[[Path], Any]] = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def saved(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    apart = {key: value.clone().contiguous() for key, value in tensors.items()}
    save_file(apart, str(path), metadata=metadata)
    return path


@cache
def both(family: str, folder: Path) -> tuple[Path, Path]:
    """A random pipeline as a diffusers folder, and as a checkpoint of one piece."""
    torch.manual_seed(len(family))
    pipeline = BUILDERS[family](folder / f"{family} parts")
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            _liven(module)
    pipeline.save_pretrained(folder / family)
    return folder / family, saved(in_one_piece(family, pipeline), folder / f"{family}.safetensors")
