"""The state of a training run on disk: whole or not there, and refused by any other run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.files import write_beside
from palimpsest.core.patch import refuse_pickle

NAME = "checkpoint.safetensors"
FORMAT = 1


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
    header = {"format": FORMAT, "step": state.step, "run": run, "log": state.log}
    metadata = {"palimpsest_checkpoint": json.dumps(header)}
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
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {})["palimpsest_checkpoint"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
        _refuse_other(path, header["run"], json.loads(json.dumps(run)))
        return _unpack(header, tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        raise Damaged(f"{path} cannot be read as a checkpoint: {e}. Delete it and start again.") from e


def _refuse_other(path: Path, found: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    differing = sorted(k for k in {*found, *run} if found.get(k) != run.get(k))
    if differing:
        k = differing[0]
        raise BadRequest(
            f"{path} belongs to another run: its {k} is {found.get(k)!r}, here it is {run.get(k)!r}. "
            "Repeat that run's settings, or use another folder, or start again without resuming."
        )


def _unpack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    leaves, kept, optimiser = {}, {}, {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("|")
        if kind == "leaf":
            leaves[rest] = tensor
        elif kind == "kept":
            kept[rest] = tensor
        else:
            leaf, _, part = rest.rpartition("|")
            optimiser.setdefault(leaf, {})[part] = tensor
    log = tuple((int(k), str(n), float(v)) for k, n, v in header["log"])
    return Checkpoint(step=int(header["step"]), leaves=leaves, optimiser=optimiser, kept=kept, log=log)


def optimiser_tensors(optimiser: torch.optim.Optimizer, leaves: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the optimiser remembers of each leaf."""
    return {
        name: {k: v for k, v in optimiser.state[leaf].items() if isinstance(v, Tensor)}
        for name, leaf in leaves.items()
        if leaf in optimiser.state
    }


def restore(optimiser: torch.optim.Optimizer, leaves: Mapping[str, Tensor], saved: Checkpoint) -> None:
    """Writes a checkpoint into fresh leaves and their optimiser."""
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(saved.leaves[name])
            if name in saved.optimiser:
                state = saved.optimiser[name]
                # Counters stay on the CPU, as the optimiser itself keeps them.
                optimiser.state[leaf] = {k: v.to(leaf.device) if v.ndim else v for k, v in state.items()}
