"""LoRAs of other programs as deltas of a model: which layer a key names, and by how much alpha scales it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from palimpsest.core.declared import shown
from palimpsest.core.delta import REAL, LowRank
from palimpsest.core.errors import Damaged, Unsupported, WrongBase
from palimpsest.export import names

DOWN = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_up.weight", ".lora.up.weight")
"""Endings of the first and the second factor: of peft, of kohya's tools, of older diffusers; in this order."""
ALPHA = ".alpha"


def is_lora(keys: Iterable[str]) -> bool:
    """Whether tensors of these names are a LoRA's, among others."""
    return any(key.endswith(DOWN) for key in keys)


def deltas_of(tensors: Mapping[str, Tensor], host: Any, where: str) -> dict[str, LowRank]:
    """The changes of a model's weights that a LoRA says: alpha / rank x up x down; alpha, if not given, is the rank.

    Raises:
        WrongBase: a key names a layer that the model does not have.
        Unsupported: something else than two factors of a layer (DoRA, LoHa, LoKr, a third factor).
        Damaged: a factor is missing, or of another form than the layer.
    """
    layers = {key: name for name in _layers(host) for key in _keys(name, len(host.parts("text_encoder")))}
    left, found = dict(tensors), dict[str, LowRank]()
    for key in tensors:
        end = next((end for end in DOWN if key.endswith(end)), "")
        if not end:
            continue
        base = key.removesuffix(end)
        if base not in layers:
            raise WrongBase(f"{where} changes {shown(base, 120)}, which {host.name} does not have.")
        down, up = left.pop(key), left.pop(base + UP[DOWN.index(end)], None)
        if up is None:
            raise Damaged(f"{where} has one factor of {shown(base, 120)}, but not the other; get a fresh copy.")
        alpha = left.pop(base + ALPHA, None)
        name = f"{layers[base]}.weight"
        if name in found:
            raise Damaged(f"{where} changes {shown(name, 120)} twice; get a fresh copy.")
        found[name] = _delta(name, down, up, alpha, host, where)
    if left:
        raise Unsupported(
            f"{where} holds {shown(min(left), 120)}, which is no factor of a LoRA (DoRA, LoHa and LoKr are other "
            "forms). "
            "Merge it into the model with the program that made it, and give that model."
        )
    return found


def _delta(name: str, down: Tensor, up: Tensor, alpha: Tensor | None, host: Any, where: str) -> LowRank:
    if down.dtype not in REAL or up.dtype not in REAL or down.dim() < 2 or up.dim() < 2 or not len(down):
        raise Damaged(f"{where}: the factors of {shown(name, 120)} are no matrices.")
    if alpha is not None and (alpha.numel() != 1 or not bool(alpha.isfinite())):
        raise Damaged(f"{where}: alpha of {shown(name, 120)} is no number.")
    scale = 1.0 if alpha is None else float(alpha) / len(down)
    delta = LowRank(up=scale * up.float().flatten(1), down=down.float().flatten(1))
    if not all(bool(t.isfinite().all()) for t in delta.tensors().values()):
        raise Damaged(f"{where}: the factors of {shown(name, 120)} hold numbers that are not finite.")
    delta.fits()
    delta.fits(host.root.get_submodule(name.removesuffix(".weight")).weight.shape)
    return delta


def _layers(host: Any) -> list[str]:
    linear = (name for name, m in host.root.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return [name for name in linear if name.startswith(("unet.", "transformer.", "text_encoder"))]


def _keys(name: str, encoders: int) -> list[str]:
    """What other programs call a layer, before the factors' endings."""
    if name.startswith("transformer."):
        return [names.peft(name)]
    further = names.originals(name) if name.startswith("unet.") else []
    return [names.peft(name), names.kohya(name, encoders=encoders), *further]
