"""Small models that are shipped with the package: real diffusers folders, classifiers, and the worlds' oracles.

`path(name)` gives a folder: a pipeline's loads with plain diffusers. `oracle(world)` gives the reader of a world.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.tiny.assemble import assembled, packed_in

if TYPE_CHECKING:
    from palimpsest.tiny.oracles import Oracle

WEIGHTS = Path(__file__).parent / "weights"


def names() -> tuple[str, ...]:
    """The models that are shipped, e.g. "sd", "portraits", "sd-without-star", "cifar"."""
    whole = ("model_index.json", "config.json")
    return tuple(
        sorted(
            folder.name
            for folder in WEIGHTS.iterdir()
            if packed_in(folder) or any((folder / file).is_file() for file in whole)
        )
    )


def path(name: str) -> Path:
    """The folder of a shipped model; a pipeline's loads with plain `StableDiffusionPipeline.from_pretrained`.

    A retrain oracle ("sd-without-star") is unpacked once into the cache, `assemble.cache()`.

    Raises:
        ValueError: no model of this name is shipped.
    """
    if name not in names():
        raise ValueError(f"no tiny model {name!r}; shipped are {', '.join(names())}")
    folder = WEIGHTS / name
    if packed_in(folder):
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
