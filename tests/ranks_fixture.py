"""Systems trained by one process, or by one of two that divide each step: what tests of `train.ranks` compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.trace import Trace

REQUEST = Request(
    target=(Concept(name="star"),),
    keep=(Concept(name="moon"), Concept(name="ring")),
    toward=(Concept(name="square"),),
)


class Share(NamedTuple):
    """One process's part: its number, where the others meet it, what to train, and where to write."""

    rank: int
    meeting: str
    systems: tuple[str, ...]
    out: str


def divided(share: Share) -> dict[str, Any]:
    """Each system's changes, made together with the other process; words where it refuses."""
    _host("erase/"), _host("unlearn/")  # made before: of several processes, libraries let only one write
    os.environ |= {"RANK": str(share.rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(share.rank)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{share.meeting}", rank=share.rank, world_size=2)
    try:
        return {system: trained(system, Path(share.out, f"{system}-{share.rank}")) for system in share.systems}
    finally:
        distributed.destroy_process_group()


def trained(system: str, out: Path | None = None) -> Any:
    """By tensor, what a system's few steps change, as arrays, and under "" the rows that went through the model; the
    words where it refuses.

    Steps are of plain gradient descent: Adam's first ones are the gradient's sign, which rounding turns.
    """
    from digits_fixture import REQUEST as FORGET
    from palimpsest.core import catalog

    cls: Any = catalog.load(system)
    method, (host, data) = cls(**cls.quick), _host(system)
    request = REQUEST if system.startswith("erase/") else FORGET
    try:
        with patch.object(torch.optim, "AdamW", _descent), patch.object(torch.optim, "Adam", _descent):
            change = method(host, request, data=data, trace=Trace(folder=out))
    except PalimpsestError as e:
        return str(e)
    tensors = dict(host.root.named_parameters())
    deltas = {
        name: delta.dense(tensors[name].shape).numpy() for name, delta in change.deltas.items() if name in tensors
    }
    rules = {f"{i}/{n}": t.float().numpy() for i, hook in enumerate(change.hooks) for n, t in hook.tensors.items()}
    return {
        **deltas,
        **rules,
        "": np.array(sum(change.cost["forwards"].get(part, 0) for part in ("denoiser", "backbone"))),
    }


def _host(system: str) -> tuple[Any, Any]:
    """A small model that a system fits, and what it learns from."""
    from digits_fixture import classifier, regressor, sample_split
    from hosts_fixtures import host_of

    if system.startswith("erase/"):
        return host_of("sd"), None
    regresses = system in ("unlearn/blindspot", "unlearn/gaussian_amnesiac")
    return regressor() if regresses else (classifier(), sample_split())


def _descent(params: Any, lr: float = 0.01, **others: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)
