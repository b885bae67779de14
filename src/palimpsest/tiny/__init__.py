"""Small models that come as a package of their own: real diffusers folders, classifiers, and the worlds' oracles.

`path(name)` gives a folder: a pipeline's loads with plain diffusers. `oracle(world)` gives the reader of a world.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.core.errors import Unsupported
from palimpsest.tiny.assemble import INT8, ZIP, assembled
from palimpsest.tiny.shelf import INSTALL, shelves

if TYPE_CHECKING:
    from palimpsest.tiny.oracles import Oracle

WEIGHTS = shelves().get("tiny", Path("models that are not installed"))
BORROWS = {"portraits": "sd"}  # the files that a pipeline does not bring itself: the text encoder is the same


def names(shelf: str = "tiny") -> tuple[str, ...]:
    """The models of a package, e.g. "sd", "portraits", "sd-without-star", "cifar"; () where it is not installed."""
    folder = WEIGHTS if shelf == "tiny" else shelves().get(shelf, Path("no such folder"))
    marks = ("model_index.json", "config.json", INT8 + ZIP)
    inside = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(f.name for f in inside if any((f / mark).is_file() for mark in marks)))


def shipped(name: str) -> bool:
    """Whether a name is one of an installed package's models, or would be if the small ones were installed."""
    shelf, slash, _ = name.partition("/")
    return bool(slash) and (shelf == "tiny" or shelf in shelves())


def path(name: str) -> Path:
    """The folder of a shipped model; a pipeline's loads with plain `StableDiffusionPipeline.from_pretrained`.

    Pipelines are shipped zipped, retrain oracles ("sd-without-star") as a U-Net alone; both are unpacked once into the
    cache, `assemble.cache()`. Other packages' folders are taken as they are, or unpacked where they are zipped.

    Args:
        name: "sd" or "tiny/sd" of the small models, "<package's name for them>/<model>" of others.

    Raises:
        Unsupported: no model of this name is installed.
    """
    shelf, _, model = name.rpartition("/")
    shelf = shelf or "tiny"
    if not names(shelf):
        raise Unsupported(f"{shelf}/{model} belongs to a package that is not installed; get it by: {INSTALL}")
    if model not in names(shelf):
        raise Unsupported(f"There is no model {shelf}/{model}; installed are {', '.join(names(shelf))}.")
    folder = (WEIGHTS if shelf == "tiny" else shelves()[shelf]) / model
    base = model.partition("-without-")[0]
    layers = [folder.with_name(layer) for layer in dict.fromkeys((BORROWS.get(base, base), base, model))]
    if shelf != "tiny" or (folder / "config.json").is_file():  # a classifier, or a package of others
        layers = [folder]
    return assembled(model, layers) if any(folder.rglob("*" + ZIP)) else folder


def oracle(world: str) -> Oracle:
    """The shipped reader of a world, in evaluation mode, float32.

    Args:
        world: "glyphs" or "faces".

    Raises:
        Unsupported: there is no such world, or the small models are not installed.
    """
    from palimpsest.tiny.oracles import load_oracle

    file = WEIGHTS / f"oracle-{world}.safetensors"
    if not names():
        raise Unsupported(f"The reader of {world} belongs to a package that is not installed; get it by: {INSTALL}")
    if not file.is_file():
        raise Unsupported(f"There is no oracle of a world {world!r}; shipped are oracles of glyphs and faces.")
    return load_oracle(file)
