"""LoRAs of other programs as deltas of a model: what a key's end says, which layer it names, what is left over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.fingerprint import tensors_of
from palimpsest.export.forms import BODIES, Layer
from palimpsest.export.layers import Layers, renewed
from palimpsest.export.told import Told
from palimpsest.hosts.originals import Place

ENDS: Mapping[str, str] = {
    r"\.(?:lora_A(?:\.\w+)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight": "down",
    r"\.(?:lora_B(?:\.\w+)?|lora_up|lora\.up|lora_linear_layer\.up)\.weight": "up",
    r"\.(?:lora_B(?:\.\w+)?|lora_up)\.bias": "up_bias",
    r"\.lora_mid\.weight": "mid",
    r"\.lora_magnitude_vector(?:\.\w+)*": "magnitude",
    r"\.dora_scale": "dora_scale",
    r"\.alpha": "alpha",
    r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))": "",  # called what they are
    r"\.(?:diff|w_norm)": "diff",
    r"\.(?:diff_b|b_norm)": "diff_b",
}
"""How keys end, and what stands there: of peft, diffusers, kohya's tools and LyCORIS."""
_ENDS = [(re.compile(f"(?:{end})$"), role) for end, role in ENDS.items()]
_SAYING = {role for roles in BODIES.values() for role in roles} | {"diff_b"}
OTHERS: Mapping[str, str] = {
    "oft_": "OFT turns weights",
    "boft_": "BOFT turns weights",
    "on_input": "(IA)^3 scales inputs or outputs",
    "lora_embedding_": "it changes a table of tokens",
    "vera_lambda": "VeRA draws its factors anew",
    "a1.weight": "GLoRA",
    "scale_weight": "its numbers are quantised",
    "bundle_emb": "it is a word",
}


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a file says of a model's weights.

    Args:
        deltas: by tensor name in `host.root`.
        forms: how many of the file's layers have each form.
        ranks: of all layers that are products of thin factors.
        unmatched: keys that have no place, sorted.
    """

    deltas: Mapping[str, Delta]
    forms: Mapping[str, int]
    ranks: tuple[int, ...]
    unmatched: tuple[str, ...]


def is_lora(keys: Iterable[str]) -> bool:
    """Whether tensors of these names are a LoRA's or one of its kin, among others."""
    return any(role in _SAYING for role, _ in map(_split, keys))


def read_lora(
    tensors: Mapping[str, Tensor], host: Any, where: str, told: Told | None = None, *, allow_unmatched: bool = False
) -> Read:
    """The changes of a model's weights that a file says.

    Args:
        where: the file, for errors.
        told: what its header or its configuration says of alpha.
        allow_unmatched: leave out keys that have no place in the model, and list them.

    Raises:
        WrongBase: keys name layers that the model does not have.
        Unsupported: other forms, quantised numbers.
        Damaged: a factor is missing, of another shape than the layer, or not finite.
    """
    layers, told = Layers(host), told or Told({}, where)
    groups: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for key in tensors:
        role, base = _split(key)
        if not role:
            unmatched.append(key)
        elif groups.setdefault(base, {}).setdefault(role, key) != key:
            raise Damaged(f"{where} has {shown(role)} of {shown(base, 120)} twice; get a fresh copy.")
    found: dict[str, Delta] = {}
    forms, ranks = Counter[str](), list[int]()
    for base, keys in groups.items():
        places = layers.find(base, where)
        given = {role: tensors[key] for role, key in keys.items()}
        if not places or not set(given) & _SAYING:
            unmatched += keys.values()
            continue
        layer = _Fused(places, layers.rows, host, f"{where}: {shown(base, 120)}")
        parts, extra = layer.read(given, told)
        unmatched += [keys[role] for role in extra]
        forms.update(layer.forms)
        ranks += layer.ranks
        for name, delta in parts.items():
            if name in found:
                raise Damaged(f"{where} changes {shown(name, 120)} twice; get a fresh copy.")
            found[name] = delta
    if unmatched and not (allow_unmatched and found):
        raise _left_over(sorted(unmatched), len(tensors), bool(found), host, where)
    return Read(deltas=found, forms=dict(forms), ranks=tuple(ranks), unmatched=tuple(sorted(unmatched)))


class _Fused:
    """A layer of a file, which is one layer of the model or several side by side."""

    def __init__(self, places: tuple[Place, ...], rows: Mapping[str, int], host: Any, where: str) -> None:
        self.places, self.host, self.where = places, host, where
        self.out = sum(rows[place.layer] for place in places)
        self.forms: list[str] = []
        self.ranks: list[int] = []

    def read(self, given: Mapping[str, Tensor], told: Told) -> tuple[dict[str, Delta], list[str]]:
        """The deltas by tensor name, and what of the file's has no place: alpha of what is not scaled, say."""
        named = tensors_of(self.host.root)
        biases = {role: given[role] for role in ("diff_b", "up_bias") if role in given}
        alpha = _number(given.get("alpha"), self.where)
        body = {role: t for role, t in given.items() if role not in biases and role != "alpha"}
        found, extra = dict[str, Delta](), list[str]()
        if body:
            base = [named[f"{place.layer}.weight"] for place in self.places]
            layer = Layer(body, torch.Size((self.out, *base[0].shape[1:])), self.where)
            rank = layer.rank()
            # A difference has no alpha: other programs do not multiply by it, so one that is there is left over.
            scale = 1.0 if layer.form == "difference" else told.scale(self.places[0].layer, rank, alpha)
            extra += ["alpha"] if layer.form == "difference" and alpha is not None else []
            extra += [role for role in body if not _belongs(role, layer.form)]
            self.forms.append(layer.form + (" (DoRA)" if {"magnitude", "dora_scale"} & set(body) else ""))
            self.ranks += [rank] if rank is not None else []
            found |= self._divided(layer.change(scale, lambda: self._base(base)), "weight")
            if "up_bias" in biases:
                biases["up_bias"] = scale * biases["up_bias"].float()
        elif "alpha" in given:
            extra.append("alpha")
        for role, bias in biases.items():
            if not all(f"{place.layer}.bias" in named for place in self.places):
                extra.append(role)
                continue
            held = Layer({"diff": bias}, torch.Size((self.out,)), self.where)
            self.forms += ["bias"]
            found |= self._divided(held.change(1.0), "bias")
        return found, extra

    def _base(self, weights: list[Tensor]) -> Tensor:
        """The layer's weight in the file's order of rows."""
        if len(weights) == 1 and not self.places[0].rows:
            return weights[0].detach().cpu()
        made = torch.empty(self.out, *weights[0].shape[1:])
        for place, weight in zip(self.places, weights, strict=True):
            made[_index(place)] = weight.detach().cpu().float()
        return made

    def _divided(self, delta: Delta, kind: str) -> dict[str, Delta]:
        if len(self.places) == 1 and not self.places[0].rows:
            return {f"{self.places[0].layer}.{kind}": delta}
        found: dict[str, Delta] = {}
        for place in self.places:
            rows = _index(place)
            if isinstance(delta, LowRank):
                up = delta.up[rows]
                # Where q, k and v have factors of their own, most columns of each are zeros.
                own = up.ne(0).any(0) if bool(up.ne(0).any()) else torch.arange(up.shape[1]) < 1
                found[f"{place.layer}.{kind}"] = LowRank(up=up[:, own], down=delta.down[own])
            else:
                found[f"{place.layer}.{kind}"] = Dense(value=delta.tensors()["value"][rows])
        return found


def _index(place: Place) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in place.rows])


def _split(key: str) -> tuple[str, str]:
    """What stands under a key, and the layer's key; "" where its end says nothing."""
    key = renewed(key)
    for end, role in _ENDS:
        if found := end.search(key):
            return role or found[1], key[: found.start()]
    return "", key


def _belongs(role: str, form: str) -> bool:
    return role in BODIES[form] or role in ("magnitude", "dora_scale")


def _number(alpha: Tensor | None, where: str) -> float | None:
    if alpha is None:
        return None
    if alpha.numel() != 1 or not bool(alpha.isfinite().all()):
        raise Damaged(f"{where}: its alpha is no number.")
    return float(alpha)


def _left_over(keys: list[str], of: int, some: bool, host: Any, where: str) -> PalimpsestError:
    """An error that names keys without a place."""
    first = ", ".join(shown(key, 120) for key in keys[:3])
    said = f"{len(keys)} of the {of} tensors of {where} have no place in {host.name}: {first}"
    said += ", ..." if len(keys) > 3 else "."
    known = sorted({why for key in keys for sign, why in OTHERS.items() if sign in key})
    if known:
        return Unsupported(
            f"{said} This is another form than those that can be read ({'; '.join(known)}). Merge it into the model "
            "with the program that made it, and give that model."
        )
    go_on = " Where that is all right, leave them out: `palimpsest import --allow-unmatched`." if some else ""
    return WrongBase(f"{said} The file is for another model, or of a form that is not known here.{go_on}")
