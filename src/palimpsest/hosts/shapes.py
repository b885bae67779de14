"""Configurations of networks from the shapes of their tensors in checkpoints of one piece.

Sizes are read from the tensors themselves, so that nothing larger than the file is ever built. What shapes do not tell
(heads, groups, the size that is drawn) is a fact of the family, given by `hosts.checkpoints`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.hosts.headers import Shapes
from palimpsest.hosts.source import MOST_LAYERS


def counted(shapes: Shapes, pattern: str) -> int:
    """How many parts are numbered by the group of a pattern, which must count from 0.

    Raises:
        Damaged: numbers are left out, or there are more than any model has.
    """
    found = {int(match[1]) for key in shapes if (match := re.match(pattern, key))}
    if len(found) > MOST_LAYERS or found != set(range(len(found))):
        raise Damaged(f"The layers {pattern!r} of the checkpoint do not count from 0 to {len(found) - 1}.")
    return len(found)


def unet(shapes: Shapes, *, heads: int = 0, size: int) -> dict[str, Any]:
    """The configuration of a U-Net as latent-diffusion checkpoints name its tensors.

    Args:
        heads: of every attention; 0: heads of 64 channels. size: of the latents that it draws by default.

    Raises:
        Unsupported: its blocks are none that diffusers' U-Net has.
    """
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer layers) of each block of each level
    for n in range(1, counted(shapes, r"input_blocks\.(\d{1,4})\.")):
        block = f"input_blocks.{n}."
        if block + "0.op.weight" in shapes:
            levels.append([])
            continue
        depth = counted(shapes, re.escape(block) + r"1\.transformer_blocks\.(\d{1,4})\.")
        levels[-1].append((shapes[block + "0.out_layers.3.weight"][0], depth))
    even = {len(level) for level in levels} == {len(levels[0])} and all(len(set(level)) == 1 for level in levels)
    depths = [level[0][1] for level in levels] if even and levels[0] else []
    middle = counted(shapes, r"middle_block\.1\.transformer_blocks\.(\d{1,4})\.")
    if not even or not any(depths) or middle != (depths[-1] or max(depths)):
        raise Unsupported(f"Its U-Net has blocks of {levels} and {middle} in the middle, which no listed family has.")
    channels = [level[0][0] for level in levels]
    to_k = next(shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
    linear = next(len(shape) == 2 for key, shape in shapes.items() if key.endswith("1.proj_in.weight"))
    config = {
        "sample_size": size,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": heads or [max(1, c // 64) for c in channels],  # diffusers' name for the number of heads
        "cross_attention_dim": to_k[1],
        "use_linear_projection": linear,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def autoencoder(shapes: Shapes) -> dict[str, Any]:
    """The configuration of an autoencoder as latent-diffusion checkpoints name its tensors."""
    n = counted(shapes, r"encoder\.down\.(\d{1,4})\.")
    return {
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(n)],
        "down_block_types": ["DownEncoderBlock2D"] * n,
        "up_block_types": ["UpDecoderBlock2D"] * n,
        "layers_per_block": counted(shapes, r"encoder\.down\.0\.block\.(\d{1,4})\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def text_encoder(shapes: Shapes, layout: str, act: str, last: bool) -> dict[str, Any]:
    """The configuration of a text encoder.

    Args:
        layout: "clip" (as transformers names tensors), "open_clip" or "t5". act: activation of a CLIP.
        last: whether its last layer is read; Stable Diffusion 2 reads the last but one of the 24 of its open_clip.
    """
    if layout == "t5":
        bias = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return {
            "vocab_size": shapes["shared.weight"][0],
            "d_model": shapes["shared.weight"][1],
            "num_layers": counted(shapes, r"encoder\.block\.(\d{1,4})\."),
            "num_heads": bias[1],
            "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // bias[1],
            "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
            "relative_attention_num_buckets": bias[0],
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
        }
    open_clip = layout == "open_clip"
    words = "token_embedding.weight" if open_clip else "text_model.embeddings.token_embedding.weight"
    places = "positional_embedding" if open_clip else "text_model.embeddings.position_embedding.weight"
    layers = r"transformer\.resblocks\.(\d{1,4})\." if open_clip else r"text_model\.encoder\.layers\.(\d{1,4})\."
    wide = "transformer.resblocks.0.mlp.c_fc.bias" if open_clip else "text_model.encoder.layers.0.mlp.fc1.bias"
    width, count = shapes[words][1], counted(shapes, layers)
    projection = shapes.get("text_projection", shapes.get("text_projection.weight"))
    if projection is not None:
        projection = projection[1] if open_clip else projection[0]
    return {
        "vocab_size": shapes[words][0],
        "hidden_size": width,
        "intermediate_size": shapes[wide][0],
        "num_hidden_layers": count - (count == 24 and not last),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes[places][0],
        "hidden_act": act,
        "projection_dim": projection or width,
    }


def sd3(shapes: Shapes) -> dict[str, Any]:
    """The configuration of a Stable Diffusion 3 transformer."""
    hidden, channels, patch, _ = shapes["x_embedder.proj.weight"]
    two = {int(key.split(".")[1]) for key in shapes if re.match(r"joint_blocks\.\d{1,4}\.x_block\.attn2\.", key)}
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": counted(shapes, r"joint_blocks\.(\d{1,4})\."),
        "attention_head_dim": 64,
        "num_attention_heads": hidden // 64,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(two),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def flux(shapes: Shapes) -> dict[str, Any]:
    """The configuration of a Flux.1 transformer."""
    inner, channels = shapes["img_in.weight"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": counted(shapes, r"double_blocks\.(\d{1,4})\."),
        "num_single_layers": counted(shapes, r"single_blocks\.(\d{1,4})\."),
        "attention_head_dim": 128,
        "num_attention_heads": inner // 128,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }
