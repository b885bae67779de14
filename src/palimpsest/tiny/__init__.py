"""Small models that are shipped with the package: real diffusers folders, classifiers, and the worlds' oracles.

`path(name)` gives a folder: a pipeline's loads with plain diffusers. `oracle(world)` gives the reader of a world.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.tiny.assemble import INT8, ZIP, assembled

if TYPE_CHECKING:
    from palimpsest.tiny.oracles import Oracle

WEIGHTS = Path(__file__).parent / "weights"
BORROWS = {"portraits": "sd"}  # the files that a pipeline does not bring itself: the text encoder is the same


def names() -> tuple[str, ...]:
    """The models that are shipped, e.g. "sd", "portraits", "sd-without-star", "cifar"."""
    marks = ("model_index.json", "config.json", INT8 + ZIP)
    return tuple(sorted(f.name for f in WEIGHTS.iterdir() if any((f / mark).is_file() for mark in marks)))


def path(name: str) -> Path:
    """The folder of a shipped model; a pipeline's loads with plain `StableDiffusionPipeline.from_pretrained`.

    Pipelines are shipped zipped, retrain oracles ("sd-without-star") as a U-Net alone; both are unpacked once into the
    cache, `assemble.cache()`.

    Raises:
        ValueError: no model of this name is shipped.
    """
    if name not in names():
        raise ValueError(f"no tiny model {name!r}; shipped are {', '.join(names())}")
    if (WEIGHTS / name / "config.json").is_file():  # a classifier
        return WEIGHTS / name
    base = name.partition("-without-")[0]
    layers = dict.fromkeys((BORROWS.get(base, base), base, name))
    return assembled(name, [WEIGHTS / layer for layer in layers])


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
