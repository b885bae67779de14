"""Who the drawn people are: the genes of a face, and named faces that are far apart."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# One gene is one number in [0, 1]. A gene listed in KINDS picks one of that many kinds (gene * kinds,
# floored); every other gene is a proportion between the two extremes of that part.
GENES: tuple[str, ...] = (
    "skin", "face_width", "face_height", "jaw", "eye_size", "eye_spacing", "eye_colour", "brow_thickness",
    "brow_slant", "nose_length", "nose_width", "mouth_width", "lips", "hair_style", "hair_colour", "beard",
    "marks", "ears", "clothes", "collar",
)  # fmt: skip
KINDS: dict[str, int] = {
    "eye_colour": 5, "hair_style": 8, "hair_colour": 8, "beard": 10, "marks": 6, "clothes": 8, "collar": 4,
}  # fmt: skip
BEARDED_FROM = 7  # of the 10 kinds of `beard`, the first 7 are clean-shaven

# How far apart two faces look when one gene goes from end to end, or (for a kind) when the kinds differ.
# Set by eye at 64 pixels: hair and skin carry a small picture, a nose does not.
VISIBILITY: dict[str, float] = {
    "skin": 1.6, "face_width": 0.7, "face_height": 0.4, "jaw": 0.4, "eye_size": 0.5, "eye_spacing": 0.3,
    "eye_colour": 0.2, "brow_thickness": 0.4, "brow_slant": 0.3, "nose_length": 0.2, "nose_width": 0.2,
    "mouth_width": 0.2, "lips": 0.1, "hair_style": 1.4, "hair_colour": 1.4, "beard": 0.5, "marks": 0.5,
    "ears": 0.2, "clothes": 1.0, "collar": 0.5,
}  # fmt: skip

SKIN = ((0.99, 0.86, 0.76), (0.94, 0.72, 0.54), (0.78, 0.54, 0.35), (0.55, 0.35, 0.22), (0.40, 0.25, 0.17))
# Styles lighten lines on near-black (brightness below 0.16) so that they never vanish; half-light lines would
# break a face up, so nothing that carries lines is darker than that, also in the shade.
HAIR = (
    (0.20, 0.18, 0.23), (0.52, 0.28, 0.12), (0.98, 0.82, 0.34), (0.84, 0.28, 0.06),
    (0.86, 0.87, 0.90), (0.14, 0.34, 0.90), (0.95, 0.34, 0.66), (0.10, 0.62, 0.34),
)  # fmt: skip
CLOTHES = (
    (0.86, 0.16, 0.18), (0.12, 0.20, 0.52), (0.96, 0.96, 0.94), (0.99, 0.80, 0.16),
    (0.08, 0.55, 0.50), (0.52, 0.22, 0.70), (0.21, 0.21, 0.24), (0.98, 0.50, 0.12),
)  # fmt: skip
IRIS = ((0.28, 0.15, 0.06), (0.16, 0.42, 0.86), (0.14, 0.55, 0.26), (0.78, 0.50, 0.08), (0.40, 0.44, 0.48))

TRAINED_NAMES: tuple[str, ...] = (
    "Ada", "Aisha", "Akiko", "Alma", "Amara", "Anya", "Astrid", "Beatriz", "Chloe", "Dalia", "Elif",
    "Emma", "Esther", "Fatima", "Freya", "Greta", "Hana", "Ingrid", "Jana", "Keiko", "Lakshmi", "Leila",
    "Mei", "Nadia", "Nia", "Olga", "Priya", "Rosa", "Sofia", "Thandi", "Yuki", "Zara", "Abel", "Ahmed",
    "Bjorn", "Bruno", "Carlos", "Chidi", "Dmitri", "Diego", "Emil", "Felix", "Finn", "Hassan", "Hugo",
    "Igor", "Ivan", "Jamal", "Kenji", "Kofi", "Lars", "Luca", "Mateo", "Milan", "Nikos", "Omar",
    "Oscar", "Pablo", "Quinn", "Raj", "Tariq", "Viktor", "Wei", "Yusuf",
)  # fmt: skip
HELD_OUT_NAMES: tuple[str, ...] = (
    "Agnes", "Amina", "Bianca", "Carmen", "Clara", "Delphine", "Dora", "Elena", "Farah", "Gita",
    "Helga", "Imani", "Irma", "Jasna", "Kira", "Lena", "Lucia", "Maya", "Mina", "Naomi", "Noor",
    "Paloma", "Rania", "Saskia", "Selma", "Tamar", "Ulla", "Vera", "Wanjiru", "Ximena", "Yara", "Zofia",
    "Aarav", "Adil", "Anders", "Arjun", "Boris", "Cyrus", "Dario", "Enzo", "Farid", "Gustav", "Hiro",
    "Ibrahim", "Jorge", "Kwame", "Leo", "Linus", "Marco", "Moses", "Nabil", "Otto", "Pavel", "Rafael",
    "Ravi", "Samir", "Stefan", "Tomas", "Umar", "Vikram", "Walid", "Xavier", "Yannis", "Zoltan",
)  # fmt: skip
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
