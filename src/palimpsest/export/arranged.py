"""A patch's changes as the layers of a format: under its names, with q, k and v in one where it has them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.export import names
from palimpsest.hosts.originals import Place, fused

Arranged = Mapping[str, tuple[Delta, torch.Size]]
"""By the layer's key in the file: how its weight changes, and the weight's shape."""


def in_peft(deltas: Mapping[str, Delta], shapes: Mapping[str, torch.Size]) -> Arranged:
    """Every layer for itself."""
    return {names.peft(name.removesuffix(".weight")): (delta, shapes[name]) for name, delta in deltas.items()}


def in_kohya(deltas: Mapping[str, Delta], shapes: Mapping[str, torch.Size], host: Any) -> Arranged:
    """A transformer's layers as those of the code that it was published with.

    Raises:
        BadRequest: the transformer's other layers are not known without the model.
        Unsupported: a transformer of another family than Flux and Stable Diffusion 3.
    """
    encoders = 1 if host is None else len(host.parts("text_encoder"))
    found: dict[str, tuple[Delta, torch.Size]] = {}
    inside = {name: delta for name, delta in deltas.items() if name.startswith("transformer.")}
    for name, delta in deltas.items():
        if name not in inside:
            found[names.kohya(name.removesuffix(".weight"), encoders=encoders)] = (delta, shapes[name])
    if not inside:
        return found
    if host is None:
        raise BadRequest("This format has several of a transformer's layers in one: give --model.")
    weights = {f"transformer.{name}": p for name, p in host.root.transformer.named_parameters()}
    rows = {name.removesuffix(".weight"): len(p) for name, p in weights.items() if name.endswith(".weight")}
    for original, places in fused(rows).items():
        held = [inside.pop(f"{place.layer}.weight", None) for place in places]
        if any(delta is not None for delta in held):
            own = [weights[f"{place.layer}.weight"].shape for place in places]
            shape = torch.Size((sum(s[0] for s in own), *own[0][1:]))
            found[f"lora_unet_{original.replace('.', '_')}"] = (_beside(held, places, own, shape), shape)
    if inside:
        raise Unsupported(
            f"{min(inside)} has no name in kohya's format, which knows Flux and Stable Diffusion 3 alone."
        )
    return found


def _beside(
    deltas: Sequence[Delta | None], places: Sequence[Place], shapes: Sequence[torch.Size], shape: torch.Size
) -> Delta:
    """Changes of several layers as one of their common original; layers without one do not change."""
    if len(places) == 1 and not places[0].rows:
        (only,) = deltas
        assert only is not None
        return only
    rows = [torch.cat([torch.arange(*span) for span in place.rows]) for place in places]
    if not all(delta is None or isinstance(delta, LowRank) for delta in deltas):
        whole = torch.zeros(shape)
        for delta, at, own in zip(deltas, rows, shapes, strict=True):
            if delta is not None:
                whole[at] = delta.dense(own).detach().cpu().float()
        return Dense(value=whole)
    ups, downs = [], list[Tensor]()
    for delta, at in zip(deltas, rows, strict=True):
        if not isinstance(delta, LowRank):
            continue
        up = torch.zeros(shape[0], delta.rank())
        up[at] = delta.up.detach().cpu().float()
        down = delta.down.detach().cpu().float()
        same = next((i for i, other in enumerate(downs) if torch.equal(other, down)), None)
        if same is None:
            ups, downs = [*ups, up], [*downs, down]
        else:  # as a file has it in which q, k and v have a factor in common
            ups[same] = ups[same] + up
    return LowRank(up=torch.cat(ups, 1), down=torch.cat(downs))
