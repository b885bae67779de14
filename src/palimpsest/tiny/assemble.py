"""Shipped pipelines are small: weights are zipped, retrain oracles have 8 bits or fewer, equal parts are borrowed.

`assembled` makes the ordinary folder of such a pipeline once, in the cache. `palimpsest_models.pack` makes them small.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from palimpsest.core.files import build_beside
from palimpsest.machine import cache_folder

ZIP = ".zip"
UNET = "unet/diffusion_pytorch_model.safetensors"
INT8 = "unet.int8.safetensors"  # what a retrain oracle has in the place of UNET


def unzipped(file: Path, out: Path) -> None:
    """Write the file whose bytes an archive's members hold, dealt out to them as cards are to players."""
    with zipfile.ZipFile(file) as archive:
        planes = [archive.read(member) for member in archive.namelist()]
    data = bytearray(sum(map(len, planes)))
    for index, plane in enumerate(planes):
        data[index :: len(planes)] = plane
    out.write_bytes(data)


def unpack(file: Path, out: Path) -> None:
    """Write float16 weights to `out`, of rows of small integers and a scale for each row, "<name>.scale"."""
    from safetensors.torch import load_file, save_file

    packed = load_file(str(file))
    weights = {}
    for name, value in packed.items():
        if name.endswith(".scale"):
            continue
        scale = packed.get(f"{name}.scale")
        if scale is not None:
            value = (value.flatten(1).float() * scale.float()[:, None]).view(value.shape).half()
        weights[name] = value
    save_file(weights, str(out), metadata={"format": "pt"})


def cache() -> Path:
    """Where assembled pipelines are kept (`machine.cache_folder`)."""
    return cache_folder() / "tiny"


def assembled(name: str, layers: Sequence[Path]) -> Path:
    """The ordinary folder of a shipped pipeline, made at the first call: each layer's files over those before it.

    The folder's name holds a hash of the layers, so new weights make a new folder. It is built beside and renamed.
    """
    folder = cache() / f"{name}-{_digest(layers)}"
    if folder.is_dir():
        return folder
    return build_beside(folder, lambda beside: _assemble(beside, layers))


def _assemble(beside: Path, layers: Sequence[Path]) -> None:
    for layer in layers:
        shutil.copytree(layer, beside, dirs_exist_ok=True)
        for file in list(beside.rglob("*" + ZIP)):
            unzipped(file, file.with_suffix(""))
            file.unlink()
    if (beside / INT8).is_file():
        unpack(beside / INT8, beside / UNET)
        (beside / INT8).unlink()


def _digest(layers: Sequence[Path]) -> str:
    """Of all files; of an archive its members' checksums, which are read without reading it."""
    h = hashlib.sha256()
    for layer in layers:
        for file in sorted(p for p in layer.rglob("*") if p.is_file()):
            h.update(file.relative_to(layer).as_posix().encode())
            if file.suffix == ZIP:
                with zipfile.ZipFile(file) as archive:
                    h.update(repr([(member.filename, member.CRC) for member in archive.infolist()]).encode())
            else:
                h.update(file.read_bytes())
    return h.hexdigest()[:12]
