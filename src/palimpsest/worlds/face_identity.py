"""Who the drawn people are: the genes of a face, and named faces that are far apart."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_TOLD = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# One gene is one number in [0, 1]. A gene listed in KINDS picks one of that many kinds (gene * kinds,
# floored); every other gene is a proportion between the two extremes of that part.
GENES: tuple[str, ...] = tuple(_TOLD["genes"])
KINDS: dict[str, int] = {gene: told["kinds"] for gene, told in _TOLD["genes"].items() if "kinds" in told}
BEARDED_FROM = 7  # of the 10 kinds of `beard`, the first 7 are clean-shaven

# How far apart two faces look when one gene goes from end to end, or (for a kind) when the kinds differ.
# Set by eye at 64 pixels: hair and skin carry a small picture, a nose does not.
VISIBILITY: dict[str, float] = {gene: told["visibility"] for gene, told in _TOLD["genes"].items()}

# Styles lighten lines on near-black (brightness below 0.16) so that they never vanish; half-light lines would
# break a face up, so nothing that carries lines is darker than that, also in the shade.
SKIN, HAIR, CLOTHES, IRIS = (tuple(map(tuple, _TOLD["colours"][k])) for k in ("skin", "hair", "clothes", "iris"))
TRAINED_NAMES: tuple[str, ...] = tuple(_TOLD["names"]["trained"])
HELD_OUT_NAMES: tuple[str, ...] = tuple(_TOLD["names"]["held_out"])
NAMES: tuple[str, ...] = TRAINED_NAMES + HELD_OUT_NAMES

_POOL, _POOL_SEED, _UNNAMED_SEED = 6000, 64, 4096


def kind(vectors: Tensor, gene: str) -> Tensor:
    """Which kind each person has of a gene that picks one: (n, d) -> (n,) int64 in [0, KINDS[gene])."""
    count = KINDS[gene]
    return (vectors[:, GENES.index(gene)] * count).long().clamp(0, count - 1)


def random_vectors(n: int, *, generator: torch.Generator) -> Tensor:
    """Fresh people: (n, d) float32, each gene uniform in [0, 1] and kinds at the middle of their interval.

    Kinds sit at their middle so that a small error in a vector that was read back does not change them.
    """
    vectors = torch.rand(n, len(GENES), generator=generator)
    for gene, count in KINDS.items():
        column = GENES.index(gene)
        vectors[:, column] = ((vectors[:, column] * count).floor() + 0.5) / count
    return vectors


def visible_features(vectors: Tensor) -> Tensor:
    """Genes weighted by how much of a 64-pixel picture they carry: (n, d) -> (n, f).

    The Euclidean distance of two rows grows with how different the two faces look; kinds are one-hot, so
    two different kinds are equally far apart whichever they are.
    """
    columns: list[Tensor] = []
    for i, gene in enumerate(GENES):
        weight = VISIBILITY[gene]
        if gene == "beard":  # the clean-shaven kinds look alike
            worn = (kind(vectors, gene) - BEARDED_FROM + 1).clamp_min(0)
            columns.append(torch.nn.functional.one_hot(worn, 4) * (weight / 2**0.5))
        elif gene in KINDS:
            one_hot = torch.nn.functional.one_hot(kind(vectors, gene), KINDS[gene])
            columns.append(one_hot * (weight / 2**0.5))
        else:
            columns.append(vectors[:, i : i + 1] * weight)
    return torch.cat([c.to(torch.float32) for c in columns], dim=1)


def farthest(features: Tensor, n: int) -> Tensor:
    """Indices of n rows, each the farthest from all chosen before it (Gonzalez, 1985): (p, f) -> (n,).

    Cost: n distance evaluations of the whole pool.
    """
    chosen = torch.empty(n, dtype=torch.int64)
    chosen[0] = 0
    nearest = torch.full((len(features),), float("inf"))
    for i in range(1, n):
        nearest = torch.minimum(nearest, (features - features[chosen[i - 1]]).square().sum(1))
        chosen[i] = nearest.argmax()
    return chosen


@lru_cache(maxsize=1)
def named_vectors() -> Tensor:
    """The people behind NAMES: (128, d), trained names first, in the order of NAMES.

    Both halves are spread equally (every second pick of one farthest-point run). Within a half the bearded
    faces come last, where the names are mostly given to men, so that captions read naturally.
    """
    pool = random_vectors(_POOL, generator=torch.Generator().manual_seed(_POOL_SEED))
    picks = pool[farthest(visible_features(pool), len(NAMES))]
    halves = []
    for half in (picks[0::2], picks[1::2]):
        bearded = (kind(half, "beard") >= BEARDED_FROM).long()
        halves.append(half[torch.sort(bearded, stable=True).indices])
    return torch.cat(halves)


def unnamed_vectors(n: int) -> Tensor:
    """The first n of an endless fixed list of people without a name: (n, d)."""
    return random_vectors(n, generator=torch.Generator().manual_seed(_UNNAMED_SEED))


def skin_colour(tone: Tensor) -> Tensor:
    """A point on the ramp of skin colours: (n,) in [0, 1] -> (n, 3)."""
    ramp = torch.tensor(SKIN)
    where = tone.clamp(0, 1) * (len(SKIN) - 1)
    low = where.floor().clamp(max=len(SKIN) - 2)
    return torch.lerp(ramp[low.long()], ramp[low.long() + 1], (where - low)[:, None])
