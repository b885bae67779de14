"""Shipped pipelines are small: weights are zipped, retrain oracles have 8 bits or fewer, equal parts are borrowed.

`assembled` makes the ordinary folder of such a pipeline once, in the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from palimpsest.core.files import build_beside, write_beside
from palimpsest.machine import cache_folder

ZIP = ".zip"
UNET = "unet/diffusion_pytorch_model.safetensors"
INT8 = "unet.int8.safetensors"  # what a retrain oracle has in the place of UNET


def zipped(file: Path, out: Path, *, planes: int) -> None:
    """Write a file's bytes to a zip archive, dealt out to `planes` members as cards are to players.

    With as many planes as a weight has bytes, the first byte of each weight, its sign and exponent, gets a member of
    its own and shrinks by half; no bit is lost.
    """
    data = file.read_bytes()

    def write(beside: Path) -> None:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for plane in range(planes):
                # Without a date, so that equal bytes make equal archives.
                member = zipfile.ZipInfo(f"{file.name}.{plane}", date_time=(1980, 1, 1, 0, 0, 0))
                archive.writestr(member, data[plane::planes], zipfile.ZIP_DEFLATED, 9)

    write_beside(out, write)


def unzipped(file: Path, out: Path) -> None:
    """Write the file that `zipped` read."""
    with zipfile.ZipFile(file) as archive:
        planes = [archive.read(member) for member in archive.namelist()]
    data = bytearray(sum(map(len, planes)))
    for index, plane in enumerate(planes):
        data[index :: len(planes)] = plane
    out.write_bytes(data)


def pack(pipeline: Path, folder: Path, *, levels: int = 127) -> None:
    """Write a pipeline's U-Net into `folder`: rows of small integers and their scales, zipped.

    A weight with two or more axes becomes round(row / s), s = max |row| / levels, one float16 scale s a row, so the
    error of a weight is at most half a scale; norms and biases stay float16.

    Args:
        levels: up to 127. Fewer make smaller files: a row of normal weights takes about log2(levels) + 0.1 bits each.
    """
    from safetensors.torch import load_file, save_file

    packed = {}
    for name, value in load_file(str(pipeline / UNET)).items():
        if value.dim() < 2:
            packed[name] = value.half()
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / levels).clamp(min=1e-7).half()
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).char().view(value.shape)
        packed[f"{name}.scale"] = scale
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / INT8
        save_file(packed, str(whole))
        zipped(whole, folder / (INT8 + ZIP), planes=1)


def unpack(file: Path, out: Path) -> None:
    """Write the float16 weights of `pack`ed ones, unzipped, to `out`."""
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
