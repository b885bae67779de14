"""Small models trained on the worlds and shipped with the package: real diffusers folders, and the worlds' oracles.

`path(name)` gives a folder that plain diffusers loads; `oracle(world)` gives the reader of a world.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.tiny.assemble import PACKED, assembled

if TYPE_CHECKING:
    from palimpsest.tiny.oracles import Oracle

WEIGHTS = Path(__file__).parent / "weights"


def names() -> tuple[str, ...]:
    """The pipelines that are shipped, e.g. "sd", "portraits", "sd-without-star"."""
    return tuple(
        sorted(
            folder.name
            for folder in WEIGHTS.iterdir()
            if (folder / "model_index.json").is_file() or (folder / PACKED).is_file()
        )
    )


def path(name: str) -> Path:
    """The folder of a shipped pipeline; loads with plain `StableDiffusionPipeline.from_pretrained`.

    A retrain oracle ("sd-without-star") is unpacked once into the cache, `assemble.cache()`.

    Raises:
        ValueError: no pipeline of this name is shipped.
    """
    if name not in names():
        raise ValueError(f"no tiny pipeline {name!r}; shipped are {', '.join(names())}")
    folder = WEIGHTS / name
    if (folder / PACKED).is_file():
        return assembled(folder, WEIGHTS / name.partition("-without-")[0])
    return folder


def oracle(world: str) -> Oracle:
    """The shipped reader of a world, in evaluation mode, float32.

    Args:
        world: "glyphs" or "faces".

    Raises:
        ValueError: there is no such world.
    """
    from palimpsest.tiny.oracles import load_oracle

    file = WEIGHTS / f"oracle-{world}.safetensors"
    if not file.is_file():
        raise ValueError(f"no oracle of a world {world!r}; shipped are oracles of glyphs and faces")
    return load_oracle(file)
