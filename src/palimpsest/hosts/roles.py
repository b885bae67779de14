"""Finds a pipeline's modules by what they do.

| role | U-Net families | joint-attention families |
|---|---|---|
| cross_attention | `attn2`: image reads text | blocks in which text and image attend to each other |
| self_attention | `attn1`: image reads image | the same blocks (they do both), and image-only attention |
| cross_key, cross_value | `attn2.to_k`, `to_v`: read text | `add_k_proj`, `add_v_proj`: read text |
| cross_query, cross_out | `attn2.to_q`, `to_out.0` | `add_q_proj`, `to_add_out` |
| self_query, self_key, self_value | `attn1.to_q`, `to_k`, `to_v`: image reads image | - |
| text_projection | - | the one layer through which all token states come in |
| pooled_projection | - | the first layer that reads the pooled states |
| denoiser, text_encoder, autoencoder | the pipeline's modules | the same |
| text_reader | the stacks of blocks around `attn2`: all that text passes through | the cross-attention modules |
| outer | time embedding and output layers | the same |
| token_embedding | each text encoder's table | the same |
| clip_token_embedding | the same | those of the CLIP encoders: T5 reads a plain text where a new word stands |
| text_block | each text encoder's transformer blocks, first to last | the same |
| bottleneck | the middle block | - |
| decoder_block | the blocks after the middle, first to last | - |

Single-stream blocks of joint-attention families project text and image with the same layers; they count as attention
modules but lend no layer to cross_key, cross_value, cross_query and cross_out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_OUTER = ("time_embedding", "time_text_embed", "conv_norm_out", "conv_out", "norm_out", "proj_out")
_INLETS = {"text_projection": "context_embedder", "pooled_projection": "time_text_embed.text_embedder.linear_1"}
_PROJECTIONS = {
    "cross_key": ("to_k", "add_k_proj"),
    "cross_value": ("to_v", "add_v_proj"),
    "cross_query": ("to_q", "add_q_proj"),
    "cross_out": ("to_out.0", "to_add_out"),
}
_OF_THE_PICTURE = {"self_query": "to_q", "self_key": "to_k", "self_value": "to_v"}


def parts_of(root: nn.Module, role: str, *, network: str, encoders: Sequence[str]) -> dict[str, nn.Module]:
    """Modules of `root` with this role, by name; {} for roles that the model lacks."""
    if role == "denoiser":
        return _children(root, [network])
    if role == "text_encoder":
        return _children(root, encoders)
    if role == "autoencoder":
        return _children(root, ["vae"])
    if role == "text_block":
        return {n: m for e in encoders for n, m in _blocks(root, e).items()}
    if role in ("bottleneck", "decoder_block"):
        return _unet_blocks(root.get_submodule(network), network, role)
    if role == "outer":
        return {f"{network}.{name}": m for name, m in root.get_submodule(network).named_children() if name in _OUTER}
    if role in _INLETS:
        inlet = _submodule(root, f"{network}.{_INLETS[role]}")
        return {} if inlet is None else {f"{network}.{_INLETS[role]}": inlet}
    attention = {
        f"{network}.{name}": m
        for name, m in root.get_submodule(network).named_modules()
        if isinstance(getattr(m, "to_q", None), nn.Module)
    }
    cross = {name: m for name, m in attention.items() if _reads_text(name, m)}
    if role == "cross_attention":
        return cross
    if role == "text_reader":
        stacks = (name.split(".transformer_blocks.")[0] if ".attn2" in name else name for name in cross)
        return {name: root.get_submodule(name) for name in dict.fromkeys(stacks)}
    if role == "self_attention":
        return {name: m for name, m in attention.items() if name not in cross or _is_joint(name, m)}
    if role in _PROJECTIONS:
        own, added = _PROJECTIONS[role]
        found = {}
        for name, m in cross.items():
            layer = f"{name}.{added if _is_joint(name, m) else own}"
            module = _submodule(root, layer)
            if module is not None:
                found[layer] = module
        return found
    if role in _OF_THE_PICTURE:
        alone = (name for name in attention if name not in cross)
        return {layer: root.get_submodule(layer) for layer in (f"{n}.{_OF_THE_PICTURE[role]}" for n in alone)}
    return {}


def _children(root: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: m for name, m in root.named_children() if name in names}


def _blocks(root: nn.Module, encoder: str) -> dict[str, nn.Module]:
    """The encoder's longest list of modules, which in every transformer is that of its blocks."""
    module = _submodule(root, encoder)
    lists = [] if module is None else [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        return {}
    name, blocks = max(lists, key=lambda found: len(found[1]))
    return {f"{encoder}.{name}.{i}": block for i, block in enumerate(blocks)}


def _unet_blocks(network: nn.Module, name: str, role: str) -> dict[str, nn.Module]:
    if role == "bottleneck":
        middle = getattr(network, "mid_block", None)
        return {f"{name}.mid_block": middle} if isinstance(middle, nn.Module) else {}
    blocks = getattr(network, "up_blocks", None)
    found = enumerate(blocks) if isinstance(blocks, nn.ModuleList) else ()
    return {f"{name}.up_blocks.{i}": block for i, block in found}


def _reads_text(name: str, attention: nn.Module) -> bool:
    return bool(getattr(attention, "is_cross_attention", False)) or _is_joint(name, attention)


def _is_joint(name: str, attention: nn.Module) -> bool:
    return isinstance(getattr(attention, "add_k_proj", None), nn.Module) or "single_transformer_blocks." in name


def _submodule(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:  # e.g. the last joint block writes no text
        return None
