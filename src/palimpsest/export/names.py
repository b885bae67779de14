"""What other programs call a layer. `name` is a module's name in `host.root`: "unet.down_blocks.0...to_k".

| format | layer | factors |
|---|---|---|
| peft | `unet.`, `transformer.`, `text_encoder.`, `text_encoder_2.` and the module's path | `.lora_A.weight` (down), `.lora_B.weight` (up) |
| kohya | `lora_unet_`, `lora_te_` (one text encoder), `lora_te1_`, `lora_te2_` (two), `lora_te3_` (T5) and the path, dots as `_`; of SD 3 and Flux the names of their own code | `.lora_down.weight`, `.lora_up.weight`, `.alpha` |

Readers also know the names that Stable Diffusion's own code gives a U-Net's layers, which kohya's tools write for SDXL:
`lora_unet_input_blocks_4_1_...`.

A text encoder's path begins with `text_model.` in both, as older versions of transformers have it; newer ones that
dropped that level are handled by the readers.
"""  # noqa: E501

from __future__ import annotations

import re
from typing import Literal

Format = Literal["peft", "kohya", "bundle"]
_IN_RESNETS = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
_IN_RESNETS |= {"conv_shortcut": "skip_connection", "norm1": "in_layers.0", "norm2": "out_layers.0"}
# SDXL's second embedding carries its original name in kohya's format: readers know no other.
_ORIGINAL = {"add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}


def peft(name: str) -> str:
    """The key of a layer in PEFT's format, without the factor's ending."""
    part, path = _split(name)
    return f"{part}.{path}"


def kohya(name: str, *, encoders: int) -> str:
    """The key of a layer in kohya's format; `encoders`: how many text encoders the model has.

    A transformer's layers, which have several of ours in one, are named in `export.arranged`.
    """
    part, path = _split(name)
    flat = path.replace(".", "_")
    if part == "unet":
        return f"lora_unet_{_ORIGINAL.get(flat, flat)}"
    if is_t5(name):
        return f"lora_te3_{flat}"
    if part == "text_encoder_2":
        return f"lora_te2_{flat}"
    return f"lora_te{'' if encoders == 1 else 1}_{flat}"


def is_t5(name: str) -> bool:
    """Whether a layer is one of a T5 text encoder."""
    part, _, path = name.partition(".")
    return part.startswith("text_encoder") and path.startswith(("shared", "encoder.block.", "encoder.final_layer_norm"))


def originals(name: str) -> list[str]:
    """What kohya's tools may also call a layer in a U-Net's blocks: by the names of Stable Diffusion's own code.

    Of blocks of two layers, as all published models have them. Where the name also depends on what else stands in the
    block, there are several.
    """
    found = re.fullmatch(r"unet\.(?:(down|up)_blocks\.(\d+)|mid_block)\.([a-z]+)\.(\d+)\.(.+)", name)
    if found is None:
        return []
    side, block, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = (_IN_RESNETS.get(rest, rest) if kind == "resnets" else rest).replace(".", "_")
    if kind not in ("attentions", "resnets"):
        places = {"downsamplers": [f"input_blocks_{3 * block + 3}_0_op"]}
        places |= {"upsamplers": [f"output_blocks_{3 * block + 2}_{n}_conv" for n in (1, 2)]}
        return [f"lora_unet_{place}" for place in places.get(kind, [])]
    column = 1 if kind == "attentions" else 0
    if side is None:
        place = f"middle_block_{1 if column else 2 * layer}"
    else:
        number = 3 * block + layer
        place = f"input_blocks_{number + 1}_{column}" if side == "down" else f"output_blocks_{number}_{column}"
    return [f"lora_unet_{place}_{rest}"]


def _split(name: str) -> tuple[str, str]:
    part, _, path = name.partition(".")
    if part.startswith("text_encoder") and path.startswith("encoder.") and not is_t5(name):
        path = f"text_model.{path}"
    return part, path
