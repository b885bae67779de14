"""What the code that a model was published with calls its layers, some of which are several of ours side by side.

Flux and Stable Diffusion 3 have one layer where diffusers has three or four: q, k, v and the first layer of an MLP.
LoRAs of kohya's tools, ComfyUI and others are in these names. Rows of theirs are rows of ours; what they read is the
same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where rows of an original layer lie here.

    Args:
        layer: a layer's name in `host.root`.
        rows: ranges of the original's rows that, one after the other, are all rows of this layer; none: all in order.
    """

    layer: str
    rows: tuple[tuple[int, int], ...] = ()


FLUX: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "double_blocks.*.img_mod.lin": ("transformer_blocks.*.norm1.linear",),
    "double_blocks.*.txt_mod.lin": ("transformer_blocks.*.norm1_context.linear",),
    "double_blocks.*.img_attn.qkv": tuple(f"transformer_blocks.*.attn.to_{x}" for x in "qkv"),
    "double_blocks.*.txt_attn.qkv": tuple(f"transformer_blocks.*.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.*.img_attn.proj": ("transformer_blocks.*.attn.to_out.0",),
    "double_blocks.*.txt_attn.proj": ("transformer_blocks.*.attn.to_add_out",),
    "double_blocks.*.img_mlp.0": ("transformer_blocks.*.ff.net.0.proj",),
    "double_blocks.*.img_mlp.2": ("transformer_blocks.*.ff.net.2",),
    "double_blocks.*.txt_mlp.0": ("transformer_blocks.*.ff_context.net.0.proj",),
    "double_blocks.*.txt_mlp.2": ("transformer_blocks.*.ff_context.net.2",),
    "single_blocks.*.modulation.lin": ("single_transformer_blocks.*.norm.linear",),
    "single_blocks.*.linear1": (
        *(f"single_transformer_blocks.*.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.*.proj_mlp",
    ),
    "single_blocks.*.linear2": ("single_transformer_blocks.*.proj_out",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SD3: Mapping[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "joint_blocks.*.x_block.adaLN_modulation.1": ("transformer_blocks.*.norm1.linear",),
    "joint_blocks.*.context_block.adaLN_modulation.1": ("transformer_blocks.*.norm1_context.linear",),
    "joint_blocks.*.x_block.attn.qkv": tuple(f"transformer_blocks.*.attn.to_{x}" for x in "qkv"),
    "joint_blocks.*.context_block.attn.qkv": tuple(f"transformer_blocks.*.attn.add_{x}_proj" for x in "qkv"),
    "joint_blocks.*.x_block.attn2.qkv": tuple(f"transformer_blocks.*.attn2.to_{x}" for x in "qkv"),
    "joint_blocks.*.x_block.attn.proj": ("transformer_blocks.*.attn.to_out.0",),
    "joint_blocks.*.x_block.attn2.proj": ("transformer_blocks.*.attn2.to_out.0",),
    "joint_blocks.*.context_block.attn.proj": ("transformer_blocks.*.attn.to_add_out",),
    "joint_blocks.*.x_block.mlp.fc1": ("transformer_blocks.*.ff.net.0.proj",),
    "joint_blocks.*.x_block.mlp.fc2": ("transformer_blocks.*.ff.net.2",),
    "joint_blocks.*.context_block.mlp.fc1": ("transformer_blocks.*.ff_context.net.0.proj",),
    "joint_blocks.*.context_block.mlp.fc2": ("transformer_blocks.*.ff_context.net.2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}


UNET: Mapping[str, str] = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
"""Layers of a U-Net outside of its blocks, as the code of Stable Diffusion calls them, with `_` for dots."""


def fused(rows: Mapping[str, int]) -> dict[str, tuple[Place, ...]]:
    """Original name -> where its rows lie, of a transformer's layers.

    Args:
        rows: how many rows each layer of the model has; of Flux or Stable Diffusion 3, else nothing is found.
    """
    inside = {name.removeprefix("transformer."): n for name, n in rows.items() if name.startswith("transformer.")}
    if not inside:
        return {}
    table = FLUX if any(name.startswith("single_transformer_blocks.") for name in inside) else SD3
    blocks = {int(found[1]) for name in inside if (found := re.match(r"(?:single_)?transformer_blocks\.(\d+)\.", name))}
    made: dict[str, tuple[Place, ...]] = {}
    for theirs, ours in table.items():
        for block in sorted(blocks) if "*" in theirs else [0]:
            names = [name.replace("*", str(block)) for name in ours]
            if not all(name in inside for name in names):
                continue
            ends = list(accumulate((inside[name] for name in names), initial=0))
            spans: list[tuple[tuple[int, int], ...]] = [((start, stop),) for start, stop in pairwise(ends)]
            if len(names) == 1:
                spans = [()]
            if _turned(names[0], block == max(blocks), table):
                spans = [((ends[1] // 2, ends[1]), (0, ends[1] // 2))]
            placed = zip(names, spans, strict=True)
            made[theirs.replace("*", str(block))] = tuple(Place(layer=f"transformer.{n}", rows=r) for n, r in placed)
    return made


def _turned(name: str, last: bool, table: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a modulation's two halves, shift and scale, stand the other way round in diffusers."""
    return name == "norm_out.linear" or (last and table is SD3 and name.endswith(".norm1_context.linear"))
