"""Pools: many pictures of a world drawn once and kept, so that training does not draw each picture again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.worlds.faces import FACES, identities
from palimpsest.worlds.glyphs import GLYPHS

WORLDS = {"glyphs": GLYPHS, "faces": FACES}
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Drawn pictures (n, 3, 64, 64) uint8, their labels (n,) and, for faces, identity vectors (n, d)."""

    images: Tensor
    labels: dict[str, Tensor]
    identity: Tensor | None


def draw_pool(
    world: str,
    n: int,
    *,
    seed: int,
    without: frozenset[str] = frozenset(),
    held_out: bool = False,
    strangers: int = 0,
) -> Pool:
    """Draw `n` pictures of `world`, each chunk of 500 from its own seed.

    Args:
        world: "glyphs" or "faces".
        n: rounded up to a multiple of 500.
        seed: the first chunk's seed; chunk i uses seed + i.
        without: words that never occur.
        held_out: also draw the held-out words (readers need them, generators must not).
        strangers: faces only: unnamed people are drawn from the first `strangers` of the fixed list, so that
            each is seen often, instead of being new each time.

    Cost: about a millisecond a picture on one core.
    """
    images, labels, people = [], [], []
    for chunk in range(-(-n // CHUNK)):
        generator = torch.Generator().manual_seed(seed + chunk)
        drawn_labels = WORLDS[world].sample(CHUNK, generator=generator, without=without, held_out=held_out)
        captions = [""] * CHUNK
        if world == "faces" and strangers:
            who = torch.randint(strangers, (CHUNK,), generator=generator)
            names = drawn_labels["identity"]
            named = FACES.identity_vectors(names.clamp_min(0))
            vectors = torch.where((names >= 0)[:, None], named, identities("unnamed", strangers)[who])
            pictures = FACES.draw(drawn_labels, generator=generator, captions=captions, vectors=vectors)
        else:
            pictures = WORLDS[world].draw(drawn_labels, generator=generator, captions=captions)
        images.append((pictures.images.clamp(0, 1) * 255).round().to(torch.uint8))
        labels.append(pictures.labels)
        if pictures.identity is not None:
            people.append(pictures.identity)
    return Pool(
        images=torch.cat(images),
        labels={key: torch.cat([part[key] for part in labels]) for key in labels[0]},
        identity=torch.cat(people) if people else None,
    )


def save_pool(pool: Pool, path: Path) -> None:
    """Write a pool as one safetensors file."""
    tensors = {"images": pool.images, **{f"label/{key}": value for key, value in pool.labels.items()}}
    if pool.identity is not None:
        tensors["identity"] = pool.identity
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    save_file(tensors, str(beside))
    beside.replace(path)


def load_pool(path: Path) -> Pool:
    """Read what `save_pool` wrote."""
    tensors = load_file(str(path))
    labels = {key.removeprefix("label/"): value for key, value in tensors.items() if key.startswith("label/")}
    return Pool(images=tensors["images"], labels=labels, identity=tensors.get("identity"))


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to [0, 1]."""
    return images.to(dtype) / 255
