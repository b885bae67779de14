"""What retrain oracles and other seeds of a task answer on fixed rows: judges of forgetting, shipped as 8-bit logits.

Oracles of a request never saw what it forgets; models of other seeds saw everything. Together they are the two sides
of a likelihood-ratio membership attack, and what one seed differs from another is the noise floor of every reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from palimpsest.core.errors import Damaged
from palimpsest.data.forget import chosen
from palimpsest.tiny.classifiers import Task

FILE = "references.safetensors"
ROWS, TESTS = 1000, 1500  # of each part: with nine models of ten classes 0.4 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """One model's answers.

    Args:
        without: what it never saw, as the training command writes it ("class:cat", "random:0.1"); "" nothing.
        seed: of its training.
        accuracy: in percent on all of "test", "retain" and, for an oracle, "forget".
        logits: by part of `rows` (an oracle has its own "forget" part only): (n, classes) float32, each row's mean
            removed, to within half a step of 8 bits.
    """

    without: str
    seed: int
    accuracy: Mapping[str, float]
    logits: Mapping[str, Tensor]


def rows(task: Task) -> dict[str, Tensor]:
    """Which samples the references answered on, evenly spread: at most 1,500 held-out ones, 1,000 of each other part.

    Returns:
        "test": rows of `task.test`. "forget 0", "forget 1", ...: rows of `task.train` that each of `task.forget` names.
        "retain": rows of `task.train` that none of them names.
    """
    masks = [chosen(task.train, request) for request in task.forget]
    parts = {"test": _spread(torch.arange(len(task.test.samples)), TESTS)}
    parts |= {f"forget {i}": _spread(mask.nonzero().squeeze(1), ROWS) for i, mask in enumerate(masks)}
    parts["retain"] = _spread((~torch.stack(masks).any(0)).nonzero().squeeze(1), ROWS)
    return parts


def without(task: Task, request: int) -> str:
    """How the references name what `task.forget[request]` forgets: "class:cat", "identity:s3,s10", "random:0.1"."""
    asked = task.forget[request]
    if asked.kind == "samples":
        return f"random:{len(asked.items) / len(task.train.samples):g}"
    return f"{asked.kind}:{','.join(asked.items)}"


def load(folder: Path) -> tuple[Reference, ...]:
    """The references beside a shipped model: `load(tiny.path("cifar"))`.

    Raises:
        Damaged: there are none, or the file is broken.
    """
    try:
        with safe_open(str(folder / FILE), framework="pt") as f:
            about: list[dict[str, Any]] = json.loads(f.metadata()["references"])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    except Exception as e:  # safetensors raises its own kinds for missing and for broken files
        raise Damaged(f"{folder} has no readable {FILE}: {e}. Install palimpsest again.") from e
    return tuple(
        Reference(**told, logits=_logits(number, tensors))  # type: ignore[arg-type]
        for number, told in enumerate(about)
    )


def _logits(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = [key.split("|")[1] for key in tensors if key.startswith(f"{number}|") and not key.endswith("|step")]
    return {part: tensors[f"{number}|{part}"].float() * tensors[f"{number}|{part}|step"] for part in parts}


def _spread(index: Tensor, most: int) -> Tensor:
    return index[torch.linspace(0, len(index) - 1, min(most, len(index))).round().long()]
