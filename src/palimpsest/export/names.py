"""What other programs call a layer. `name` is a module's name in `host.root`: "unet.down_blocks.0...to_k".

| format | layer | factors |
|---|---|---|
| peft | `unet.`, `transformer.`, `text_encoder.`, `text_encoder_2.` and the module's path | `.lora_A.weight` (down), `.lora_B.weight` (up) |
| kohya | `lora_unet_`, `lora_te_` (one text encoder), `lora_te1_`, `lora_te2_` (two) and the path, dots as `_` | `.lora_down.weight`, `.lora_up.weight`, `.alpha` |

A text encoder's path begins with `text_model.` in both, as older versions of transformers have it; newer ones that
dropped that level are handled by the readers.
"""  # noqa: E501

from __future__ import annotations

from typing import Literal

from palimpsest.core.errors import Unsupported

Format = Literal["peft", "kohya"]
# SDXL's second embedding carries its original name in kohya's format: readers know no other.
_ORIGINAL = {"add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}


def peft(name: str) -> str:
    """The key of a layer in PEFT's format, without the factor's ending."""
    part, path = _split(name)
    return f"{part}.{path}"


def kohya(name: str, *, encoders: int) -> str:
    """The key of a layer in kohya's format; `encoders`: how many text encoders the model has.

    Raises:
        Unsupported: a transformer's layer, whose names in this format belong to another arrangement of weights.
    """
    part, path = _split(name)
    flat = path.replace(".", "_")
    if part == "unet":
        return f"lora_unet_{_ORIGINAL.get(flat, flat)}"
    if part == "transformer":
        raise Unsupported(f"{name} is a transformer's layer, which kohya's format stores fused; use --format peft.")
    if part == "text_encoder_2":
        return f"lora_te2_{flat}"
    return f"lora_te{'' if encoders == 1 else 1}_{flat}"


def _split(name: str) -> tuple[str, str]:
    part, _, path = name.partition(".")
    if part.startswith("text_encoder") and path.startswith("encoder."):
        path = f"text_model.{path}"
    return part, path
