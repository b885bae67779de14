"""What a model's weights take in memory, read from the headers of its files before any of them is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from palimpsest import machine
from palimpsest.core.errors import Damaged, TooLarge
from palimpsest.hosts.headers import Header
from palimpsest.hosts.source import CONFIG, INDEX, Source, weights_in
from palimpsest.machine import amount

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of pipelines that no host loads."""
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of a number by its name in safetensors headers, where it is a real one; these are loaded as what is asked."""
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Held(NamedTuple):
    """What weights take once they are loaded.

    Args:
        parameters: how many numbers they are.
        private: bytes that this process has for itself.
        mapped: bytes that stay pages of the files, since the files hold what is asked for: processes on one machine
            share them, and the system drops them where memory is short and reads them again when they are needed.
    """

    parameters: int
    private: int
    mapped: int

    @property
    def all(self) -> int:
        return self.private + self.mapped


def held_by(path: Path, index: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Held]:
    """The weights of each component of a pipeline by its name; of any other model, all of them under "".

    Args:
        path: a folder or a file. index: the content of its model_index.json; {} where there is none.
        dtype, device: as which and where they are wanted.

    Raises:
        Damaged: a file is no whole safetensors file, or a component has none.

    Cost: the files' headers.
    """
    return {name: _counted(files, dtype, device) for name, files in _files(path, index).items()}


def refuse_too_large(source: Source) -> None:
    """Raises TooLarge where a model's weights do not fit the memory that is free now. Cost: the files' headers.

    Where the system does not say what is free, or the files are damaged, nothing is refused.
    """
    free = machine.available(str(source.device))
    try:
        parts = held_by(source.path, source.config, source.dtype, source.device)
    except Damaged:
        return  # loading says better what is wrong
    need = sum(part.all for part in parts.values())
    if free is None or need <= free:
        return
    dtype = str(source.dtype).removeprefix("torch.")
    half = sum(part.all for part in held_by(source.path, source.config, torch.bfloat16, source.device).values())
    largest = max(parts, key=lambda name: parts[name].all)
    ways = [f"--dtype bfloat16 ({amount(half)})"] if half < need else []
    raise TooLarge(
        f"{source.name} does not fit: its weights take {amount(need)} in {dtype}"
        + (f" ({largest} {amount(parts[largest].all)})" if largest else "")
        + f", and {amount(free)} are free on {source.device}; nothing was loaded. "
        + ("Try " + " or ".join(ways) + ", or a machine with more memory." if ways else "It takes a larger machine.")
    )


def _files(path: Path, index: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The safetensors files that are loaded, by component."""
    if path.is_file():
        return {"": [path]}
    if not (path / INDEX).is_file():
        stems = ("diffusion_pytorch_model", "model", "")
        stem = next(s for s in stems if not s or any(path.glob(f"{s}*.safetensors")))
        return {"": _plain(path, stem)}
    found = {}
    for name, said in index.items():
        if isinstance(said, list) and len(said) == 2 and said[0] and name not in UNUSED:
            folder = path / name
            if (folder / CONFIG).is_file() and not name.startswith("tokenizer"):
                found[name] = _plain(folder, "diffusion_pytorch_model" if said[0] == "diffusers" else "model")
    return found


def _plain(folder: Path, stem: str) -> list[Path]:
    """The files that are loaded of several variants."""
    return min(weights_in(folder, stem).items())[1]


def _counted(files: list[Path], dtype: torch.dtype, device: torch.device) -> Held:
    count = private = mapped = 0
    for file in files:
        header = Header.of(file)
        for name, kind in header.kinds.items():
            numbers = math.prod(header.shapes[name])
            width = dtype.itemsize if kind in WIDTHS else 8
            count += numbers
            if device.type == "cpu" and kind == NAMES[dtype]:
                mapped += numbers * width
            else:
                private += numbers * width
    return Held(count, private, mapped)
