"""Make pipelines small enough to be shipped: weights zipped without loss, retrain oracles of 8 bits or fewer."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from palimpsest.core.files import write_beside
from palimpsest.tiny.assemble import INT8, UNET, ZIP


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


def pack(pipeline: Path, folder: Path, *, levels: int = 127) -> None:
    """Write a pipeline's U-Net into `folder`: rows of small integers and their scales, zipped.

    A weight with two or more axes becomes round(row / s), s = max |row| / levels, one float16 scale s a row, so the
    error of a weight is at most half a scale; norms and biases stay float16.

    Args:
        levels: up to 127. Fewer make smaller files: a row of normal weights takes about log2(levels) + 0.1 bits each.
    """
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
