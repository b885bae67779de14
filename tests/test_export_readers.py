"""Keys of exported LoRAs under the rules of the programs that read them, written once more from their public code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
import pytest
import torch
import transformers

from checkpoint_fixtures import open_clip_names, shapes_of, unet_names
from palimpsest.export import names

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
SD1: dict[str, Any] = {
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + DOWN[:1],
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (DOWN[0], DOWN[1], DOWN[1]),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
UNETS = {"sd1": SD1, "sdxl": SDXL}
RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
          "conv_shortcut": "skip_connection"}  # fmt: skip


def layers(state: Mapping[str, Any]) -> list[str]:
    """Names of all matrices and convolutions, which alone a LoRA changes."""
    return [name.removesuffix(".weight") for name, t in state.items() if name.endswith(".weight") and t.ndim in (2, 4)]


def a1111(key: str) -> str:
    """What stable-diffusion-webui calls the layer of a key of a U-Net, by its own names of modules."""
    key = key.removeprefix("lora_unet_")
    if m := re.fullmatch(r"(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key):
        way, level, what, index, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
        at = (1 if way == "down" else 0) + level * 3 + index
        rest = RESNET.get(rest, rest) if what == "resnets" else rest
        return f"{'input' if way == 'down' else 'output'}_blocks_{at}_{int(what == 'attentions')}_{rest}"
    if m := re.fullmatch(r"mid_block_(attentions|resnets)_(\d+)_(.+)", key):
        rest = RESNET.get(m[3], m[3]) if m[1] == "resnets" else m[3]
        return f"middle_block_{1 if m[1] == 'attentions' else 2 * int(m[2])}_{rest}"
    if m := re.fullmatch(r"down_blocks_(\d+)_downsamplers_0_conv", key):
        return f"input_blocks_{3 + 3 * int(m[1])}_0_op"
    if m := re.fullmatch(r"up_blocks_(\d+)_upsamplers_0_conv", key):
        return f"output_blocks_{2 + 3 * int(m[1])}_{2 if int(m[1]) > 0 else 1}_conv"
    if m := re.fullmatch(r"time_embedding_linear_(\d)", key):
        return f"time_embed_{2 * int(m[1]) - 2}"
    ends = {"conv_in": "input_blocks_0_0", "conv_out": "out_2"}
    return ends.get(key, key)  # else as its own code calls it


def comfy(state: Iterable[str]) -> set[str]:
    """Keys that ComfyUI knows: of every layer its name, dots as underscores."""
    return {f"lora_unet_{name.replace('.', '_')}" for name in state}


@pytest.mark.parametrize("family", UNETS)
def test_keys_of_a_u_net_are_layers_of_both_programs(family: str) -> None:
    state = shapes_of(diffusers.UNet2DConditionModel, UNETS[family])
    original = unet_names(state, layers=2)
    own = {name.removeprefix("model.diffusion_model.").replace(".", "_") for name in layers(original)}
    called = [names.kohya(f"unet.{layer}", encoders=1) for layer in layers(state)]
    assert len(set(called)) == len(called)
    known = comfy([*layers(state), *(n.removeprefix("model.diffusion_model.") for n in layers(original))])
    assert set(called) <= known
    # A1111's rule has SD 1's place for the first upsampler, which in SDXL stands behind attention: it leaves it out.
    seen = [key for key in called if not (family == "sdxl" and "up_blocks_0_upsamplers" in key)]
    assert {a1111(key) for key in seen} <= own


def test_keys_of_text_encoders_are_layers_of_both_programs() -> None:
    with torch.device("meta"):
        config = transformers.CLIPTextConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=128)
        text = transformers.CLIPTextModel(config).state_dict()
    inner = [layer for layer in layers(text) if "layers." in layer]
    parts = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")))
    said = {f"text_model_encoder_layers_{i}_{part.replace('.', '_')}" for i in range(2) for part in parts}
    for part, encoders, prefix in (("text_encoder", 1, "te"), ("text_encoder", 2, "te1"), ("text_encoder_2", 2, "te2")):
        called = {names.kohya(f"{part}.{layer}", encoders=encoders) for layer in inner}
        assert called == {f"lora_{prefix}_{key}" for key in said}
    second = {key.removesuffix(".weight").replace(".", "_") for key in open_clip_names(text, "")}
    for key in said:  # stable-diffusion-webui's rule for the second encoder of SDXL, open_clip's names behind it
        index, rest = key.removeprefix("text_model_encoder_layers_").split("_", 1)
        rest = rest.replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")
        at = f"transformer_resblocks_{index}_{rest}"
        joint = f"transformer_resblocks_{index}_attn_in_proj"
        assert at in second or ("_proj" in at and joint in " ".join(second)), at
