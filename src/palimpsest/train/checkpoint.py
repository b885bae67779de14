"""The state of a training run on disk: whole or not there, and refused by any other run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.declared import Within, parsed, shown
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.files import read_tensors, write_beside

NAME = "checkpoint.safetensors"
KEY = "palimpsest_checkpoint"
FORMAT = 1


class _Header(TypedDict):
    format: Literal[1]
    step: Annotated[int, Within(least=0)]
    run: dict[str, Any]
    log: list[tuple[int, str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Args:
    step: how many steps are done.
    leaves: the trained tensors.
    optimiser: its tensors, by leaf and name.
    kept: tensors that steps write by themselves.
    log: the run's log so far.
    """

    step: int
    leaves: Mapping[str, Tensor]
    optimiser: Mapping[str, Mapping[str, Tensor]]
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    log: tuple[tuple[int, str, float], ...] = ()


def save(folder: Path, run: Mapping[str, Any], state: Checkpoint) -> Path:
    """One safetensors file with JSON in its header, written beside and renamed.

    Args:
        run: plain JSON that says which run this is; only the same run may resume from it.
    """
    tensors = {f"leaf|{n}": t.detach().cpu().contiguous() for n, t in state.leaves.items()}
    tensors |= {f"kept|{n}": t.detach().cpu().contiguous() for n, t in state.kept.items()}
    for leaf, parts in state.optimiser.items():
        tensors |= {f"optimiser|{leaf}|{part}": t.detach().cpu().contiguous() for part, t in parts.items()}
    header = {"format": FORMAT, "step": state.step, "run": run}
    header["log"] = [(k, n, v if math.isfinite(v) else None) for k, n, v in state.log]
    metadata = {KEY: json.dumps(header)}
    return write_beside(folder / NAME, lambda tmp: save_file(tensors, tmp, metadata=metadata))


def load(folder: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint in a folder; None where there is none.

    Raises:
        BadRequest: it belongs to another run; the message says what differs.
        Damaged: it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    meta, tensors = read_tensors(path, "a checkpoint")
    header = parsed(meta.get(KEY, "{}"), _Header, f"{path}: its header")
    _refuse_other(path, header["run"], json.loads(json.dumps(run)))
    return _unpack(path, header, tensors)


def _refuse_other(path: Path, found: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    differing = sorted(k for k in {*found, *run} if found.get(k) != run.get(k))
    if differing:
        k = differing[0]
        raise BadRequest(
            f"{path} belongs to another run: its {k} is {found.get(k)!r}, here it is {run.get(k)!r}. "
            "Repeat that run's settings, or use another folder, or start again without resuming."
        )


def _unpack(path: Path, header: _Header, tensors: Mapping[str, Tensor]) -> Checkpoint:
    leaves, kept, optimiser = {}, {}, {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("|")
        if kind == "leaf":
            leaves[rest] = tensor
        elif kind == "kept":
            kept[rest] = tensor
        elif kind == "optimiser":
            leaf, _, part = rest.rpartition("|")
            optimiser.setdefault(leaf, {})[part] = tensor
        else:
            raise Damaged(f"{path} holds {shown(key)}, which no checkpoint does. Delete it and start again.")
    log = tuple((k, n, math.nan if v is None else v) for k, n, v in header["log"])
    return Checkpoint(step=header["step"], leaves=leaves, optimiser=optimiser, kept=kept, log=log)


def optimiser_tensors(optimiser: torch.optim.Optimizer, leaves: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the optimiser remembers of each leaf."""
    return {
        name: {k: v for k, v in optimiser.state[leaf].items() if isinstance(v, Tensor)}
        for name, leaf in leaves.items()
        if leaf in optimiser.state
    }


def restore(
    optimiser: torch.optim.Optimizer, leaves: Mapping[str, Tensor], kept: Mapping[str, Tensor], saved: Checkpoint
) -> None:
    """Writes a checkpoint into fresh leaves, their optimiser and the kept tensors.

    Raises:
        Damaged: it holds other tensors than these, or numbers that are not finite; then nothing is written.
    """
    for name, leaf in leaves.items():
        _check(f"the trained {shown(name)}", saved.leaves.get(name), leaf.shape)
        for part, value in saved.optimiser.get(name, {}).items():
            _check(f"the optimiser's {shown(part)}", value, leaf.shape if value.ndim else value.shape)
    for name, tensor in kept.items():
        _check(f"the kept {shown(name)}", saved.kept.get(name), tensor.shape)
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(saved.leaves[name])
            if name in saved.optimiser:
                state = saved.optimiser[name]
                # Counters stay on the CPU, as the optimiser itself keeps them.
                optimiser.state[leaf] = {k: v.to(leaf.device) if v.ndim else v for k, v in state.items()}
        for name, tensor in kept.items():
            tensor.copy_(saved.kept[name])


def _check(what: str, value: Tensor | None, shape: torch.Size) -> None:
    if value is None or value.shape != shape:
        is_ = "is missing" if value is None else f"has the shape {tuple(value.shape)}, not {tuple(shape)}"
        raise Damaged(f"The checkpoint is damaged: {what} {is_}. Delete it and start again.")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise Damaged(f"The checkpoint is damaged: {what} is not finite. Delete it and start again.")
