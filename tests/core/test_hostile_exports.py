"""Hostile patches as LoRAs: refused in words, with the model and without it; nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hosts_fixtures import host_of
from palimpsest.core.delta import Delta, Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.patch import Patch
from palimpsest.export.lora import export_patch

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
ONE = torch.tensor([0])


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "delta",
    [
        LowRank(up=torch.ones(16), down=torch.ones(16)),
        LowRank(up=torch.ones(()), down=torch.ones(())),
        LowRank(up=torch.ones(16, 2), down=torch.ones(1, 16)),
        LowRank(up=torch.ones(16, 1).int(), down=torch.ones(1, 16).int()),
        LowRank(up=torch.ones(16, 1).half(), down=torch.ones(1, 16)),
        Dense(value=torch.ones(())),
        Dense(value=torch.ones(16, 16).int()),
        Dense(value=torch.ones(0, 16)),
        Rows(index=torch.tensor([-1]), value=torch.ones(1, 16)),
        Rows(index=torch.tensor([16]), value=torch.ones(1, 16)),
        Sparse(index=torch.tensor([256]), value=torch.ones(1)),
        Sparse(index=ONE, value=torch.ones(2)),
    ],
    ids=lambda delta: f"{delta.kind} {[tuple(t.shape) for t in delta.tensors().values()]}",
)
def test_hostile_deltas_are_not_exported(tmp_path: Path, delta: Delta, known: bool) -> None:
    host: Any = host_of("sd") if known else None
    patch = Patch(base=host_of("sd").fingerprint(), deltas={LAYER: delta})
    with pytest.raises(PalimpsestError):
        export_patch(patch, host, "peft", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []
