"""Which layers of a model a key of another program's file names: all that it may call each, against what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from palimpsest.core.declared import shown
from palimpsest.core.errors import BadRequest
from palimpsest.export import names
from palimpsest.hosts.originals import UNET, Place, fused

NETWORKS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
OF_NETWORKS = ("lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model_", "model_diffusion_model_")
OF_ALL = ("", "base_model_model_")
"""What stands before a layer's name where a file has one part of a model alone; peft says the second."""
CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class Layers:
    """The layers of a model that have weights, by everything that files call them; dots and `_` are one."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.rows = {name: len(module.weight) for name, module in _weighted(host.root)}
        self._called: dict[str, set[tuple[Place, ...]]] = {}
        for name in self.rows:
            for key in _keys(name):
                self._called.setdefault(key, set()).add((Place(layer=name),))
        for original, places in fused(self.rows).items():
            for prefix in (*OF_NETWORKS, "transformer_", *OF_ALL):
                self._called.setdefault(prefix + _flat(original), set()).add(places)

    def find(self, key: str, where: str) -> tuple[Place, ...]:
        """Where a layer's tensors go; () where the model has no such layer.

        Raises:
            BadRequest: it may be a layer of two parts of the model.
        """
        found = self._called.get(_flat(key), set())
        if len(found) > 1:
            parts = " and of ".join(sorted({places[0].layer.partition(".")[0] for places in found}))
            raise BadRequest(
                f"{where} changes {shown(key, 120)}, which may be of {parts}: nothing in its name says which. Put the "
                "part's name and a dot before each key."
            )
        return next(iter(found), ())


def _weighted(root: nn.Module) -> Iterator[tuple[str, Any]]:
    parts = [part for part in (*NETWORKS, *ENCODERS) if hasattr(root, part)]
    for name, module in root.named_modules():
        if isinstance(module._parameters.get("weight"), nn.Parameter) and (
            not parts or name.partition(".")[0] in parts
        ):
            yield name, module


def _keys(name: str) -> set[str]:
    """Everything that a layer is called before its factors' endings."""
    part, _, path = name.partition(".")
    if part in NETWORKS:
        prefixes = (f"{part}_", *OF_NETWORKS, *OF_ALL, *(f"{own}{part}_" for own in OF_ALL))
        old = {key.removeprefix("lora_unet_") for key in names.originals(name)}
        if part == "unet" and path in UNET:
            old.add(UNET[path])
        return {prefix + said for prefix in prefixes for said in (_flat(path), *old)}
    if part in ENCODERS:
        return {prefix + said for prefix in _of_encoder(part, path) for said in _paths(path)}
    return {prefix + _flat(name) for prefix in OF_ALL}


def _of_encoder(part: str, path: str) -> Sequence[str]:
    number = "1" if part == "text_encoder" else part[-1]
    said = [f"{part}_", f"lora_te{number}_", *OF_ALL]
    if number == "1":
        said.append("lora_te_")
    if names.is_t5(f"{part}.{path}"):
        return [*said, "lora_te3_", "text_encoders_t5xxl_transformer_"]
    return [*said, f"text_encoders_{CLIPS.get(part, '')}_transformer_"]


def _paths(path: str) -> Sequence[str]:
    """With and without the level that older versions of transformers have in CLIP's text encoders."""
    bare = path.removeprefix("text_model.")
    return (_flat(bare), _flat(f"text_model.{bare}"))


def _flat(key: str) -> str:
    return key.replace(".", "_")


def renewed(key: str) -> str:
    r"""A key that names an attention's layer as diffusers did until 0.26, as it does now.

    >>> renewed("unet.a.attn1.processor.to_out_lora.up.weight")
    'unet.a.attn1.to_out.0.lora.up.weight'
    >>> renewed("text_encoder.a.self_attn.to_q_lora.up.weight")
    'text_encoder.a.self_attn.q_proj.lora.up.weight'
    """
    key = re.sub(r"\.processor\.(\w+)_lora\.", lambda m: f".{_OUT.get(m[1], m[1])}.lora.", key)
    return re.sub(r"\.self_attn\.to_(q|k|v|out)_lora\.", r".self_attn.\1_proj.lora.", key)


_OUT = {"to_out": "to_out.0"}
