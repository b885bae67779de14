"""How much alpha scales each layer, where peft says it beside the tensors: `adapter_config.json`, or a file's header.

| where | written by | keys |
|---|---|---|
| `adapter_config.json` beside the file | peft | `r`, `lora_alpha` |
| `lora_adapter_metadata` in the file's header | diffusers since 0.34 | the same, after `unet.` and other parts |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.core import declared
from palimpsest.core.declared import shown
from palimpsest.core.errors import Damaged, Unsupported

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"
KINDS = ("LORA", "LOHA", "LOKR")
AS_TRAINED = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga")
"""Ways of starting a LoRA of which some change the weights that it is added to; what they write is no change of those
that were published."""


class Told:
    """What stands beside a file's tensors; without any, alpha is each layer's rank."""

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.said, self.where = said, where

    @staticmethod
    def of(path: Path, header: Mapping[str, str]) -> Told:
        """Of a file: its header, and for one of peft's the configuration beside it.

        Raises:
            Damaged: they cannot be read.
            Unsupported: an adapter whose tensors say no change of the published weights.
        """
        beside = path.parent / CONFIG
        if path.name == "adapter_model.safetensors" and beside.is_file():
            told = Told(declared.read(beside, dict, "peft's configuration of an adapter"), str(beside))
        else:
            said = declared.parsed(header.get(HEADER) or "{}", dict, f"{path} ({HEADER} of its header)")
            told = Told(said, f"{path} ({HEADER})")
        told._refuse_odd()
        return told

    def scale(self, layer: str, rank: int | None, alpha: float | None) -> float:
        """What a layer's product is multiplied by.

        Args:
            layer: its name in `host.root`.
            rank: of its factors; None where the form has none, as two whole factors of a Kronecker product.
            alpha: as a tensor of the file says; None: it says none.
        """
        by = self._for(layer, "rank_pattern", self._get(layer, "r")) if rank is None else rank
        if alpha is None:
            alpha = self._for(layer, "alpha_pattern", self._get(layer, "lora_alpha", self._get(layer, "alpha")))
        if by is None or alpha is None:
            return 1.0
        return alpha / (math.sqrt(by) if self._get(layer, "use_rslora") else by)

    def _get(self, layer: str, key: str, default: Any = None) -> Any:
        """What is said of a part of the model, else of the file as a whole."""
        value = self.said.get(f"{layer.partition('.')[0]}.{key}", self.said.get(key, default))
        if value is not None and key in ("r", "lora_alpha", "alpha"):
            return self._number(value, key)
        return value

    def _for(self, layer: str, pattern: str, default: float | None) -> float | None:
        """What a table says of a layer: peft holds a layer's name against each entry's end, the first one counts."""
        table = self._get(layer, pattern) or {}
        if not isinstance(table, dict):
            raise Damaged(f"{self.where}: {pattern} is {shown(table)}, no table.")
        path = layer.partition(".")[2]
        for entry, value in table.items():
            plain = entry.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if not all(letter.isalnum() or letter in "._-" for letter in plain):
                raise Unsupported(
                    f"{self.where}: {pattern} has {shown(entry)}, a pattern that stands for several names. Write the "
                    "layers out, one an entry."
                )
            same = (path == plain, layer == plain) if entry.startswith("^") else (f".{layer}".endswith(f".{plain}"),)
            if any(same):
                return self._number(value, pattern)
        return default

    def _number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise Damaged(f"{self.where}: {key} has {shown(value)}, where a number is expected.")
        if value <= 0 and key in ("r", "rank_pattern"):
            raise Damaged(f"{self.where}: {key} has {shown(value)}; a rank is at least 1.")
        return float(value)

    def _refuse_odd(self) -> None:
        for key, value in self.said.items():
            name = key.rpartition(".")[2]
            if name == "peft_type" and str(value).upper() not in KINDS:
                raise Unsupported(
                    f"{self.where} is of a {shown(value)}; {', '.join(KINDS)} can be read. Merge it into the model "
                    "with peft, and give that model."
                )
            if name == "init_lora_weights" and str(value).casefold().startswith(AS_TRAINED):
                raise Unsupported(
                    f"{self.where} starts from {shown(value)}, which takes the first factors off the weights: the "
                    "factors alone are no change of the published ones. Save it again with peft's "
                    "path_initial_model_for_weight_conversion."
                )
