"""Every erasing system on a model loaded to save memory: checkpointed, and in half precision."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from hosts_fixtures import folder_of, host_of
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.load import load
from palimpsest.testing import quick
from support_fixture import supported

STAR, MOON, RING = Concept(name="star"), Concept(name="moon"), Concept(name="ring")
REQUEST = Request(target=(STAR,), keep=(MOON, RING), toward=(Concept(name="square"),))
RUNS = sorted(system for system, row in supported("erase/").items() if row["sd"] == "runs")
FITTED = [system for system in RUNS if "steps" in catalog.load(system).__dataclass_fields__]  # by gradients


@cache
def loaded(how: str) -> Any:
    if how == "checkpointing":
        return load(folder_of("sd"), checkpointing=True)
    return load(folder_of("sd"), dtype=how)


@pytest.mark.parametrize("system", FITTED)
def test_checkpointing_leaves_every_system_what_it_is(system: str) -> None:
    plain, again = (quick(system)(host, REQUEST) for host in (host_of("sd"), loaded("checkpointing")))
    assert plain.sha256() == again.sha256()


@pytest.mark.parametrize("system", RUNS)
def test_what_changes_in_a_half_precision_model_is_known_in_float32(system: str) -> None:
    host = loaded("bfloat16")
    patch = quick(system)(host, REQUEST)
    real = {name: t.dtype for name, t in _tensors(patch).items() if t.is_floating_point()}
    assert set(real.values()) <= {torch.float32, torch.float64}, real
    with torch.no_grad():
        before = host.sample(["a star"], [0], Sampling(steps=2))
        with patch.applied(host):
            after = host.sample(["a star"], [0], Sampling(steps=2))
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(before, after), f"{system} changes no picture of its target"


def test_a_small_step_is_not_rounded_away() -> None:
    """In bfloat16 a weight of 1 knows no change below 1/256; its leaf does."""
    esd: Any = catalog.load("erase/esd")
    patch = esd(steps=2, lr=1e-6, walk_steps=3)(loaded("bfloat16"), REQUEST)
    moved = torch.cat([t.flatten() for t in _tensors(patch).values()]).abs()
    assert 0 < float(moved.max()) < 1e-5


def _tensors(patch: Patch) -> dict[str, torch.Tensor]:
    held = {f"{name}.{k}": t for name, delta in patch.deltas.items() for k, t in delta.tensors().items()}
    return held | {f"{hook.id}.{k}": t for hook in patch.hooks for k, t in hook.tensors.items()}
