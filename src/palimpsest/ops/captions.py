"""Sentences of everyday words, as a data set's captions would be: contexts for a concept, and what must stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from palimpsest.core.concept import Concept, Kind
from palimpsest.ops.listed import common

ORDER: tuple[Kind, ...] = ("attribute", "object", "style", "domain")
SLOTS: dict[Kind, int] = {"attribute": 0, "object": 1, "class": 1, "identity": 1, "style": 2, "domain": 3}
"""Where a concept stands in a caption."""
ABSENT = 0.4  # how often a caption leaves one of its parts out


def captions(n: int, without: Iterable[str]) -> list[str]:
    """n captions that hold none of the names; the same ones every time."""
    return [_said(row) for row in _rows(n, without)]


def in_captions(concept: Concept, others: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """n captions with the concept; beside each, the same one with each other name in its place ("" drops it)."""
    slot = SLOTS[concept.kind]
    names = (concept.name, *others)
    rows = _rows(n, (concept.name,))
    return [tuple(_said((*row[:slot], name, *row[slot + 1 :])) for name in names) for row in rows]


def _rows(n: int, without: Iterable[str]) -> list[list[str]]:
    """(attribute, thing, style, scene), some of them empty."""
    names = {name.casefold() for name in without}
    words = [[w for w in common(kind) if not names & set(w.casefold().split()) and w not in names] for kind in ORDER]
    draws = torch.Generator().manual_seed(0)
    rows = [[w[int(torch.randint(len(w), (1,), generator=draws))] for w in words] for _ in range(n)]
    return [["" if float(torch.rand((), generator=draws)) < ABSENT else w for w in row] for row in rows]


def _said(row: Sequence[str]) -> str:
    attribute, thing, style, scene = row
    return ", ".join(part for part in (" ".join(w for w in ("a", attribute, thing) if w), style, scene) if part)
