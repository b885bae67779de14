"""Words with random vectors for the small random pipelines."""

from __future__ import annotations

from typing import Any

import torch

from palimpsest.core.words import Word


def word_for(host: Any, k: int = 1, seed: int = 0, *, reads_as: str = "", clip: bool = False) -> Word:
    """k vectors as large as the tables' own, for every table, or for those of CLIP encoders alone."""
    g = torch.Generator().manual_seed(seed)
    tables = {n: t for n, t in host.parts("token_embedding").items() if not (clip and n.endswith("shared"))}
    return Word(
        vectors={n: torch.randn(k, t.weight.shape[1], generator=g) for n, t in tables.items()}, reads_as=reads_as
    )
