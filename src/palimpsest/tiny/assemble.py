"""Retrain oracles take half the room: an 8-bit U-Net, and everything else borrowed from the pipeline they mirror."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

PACKED = "unet.int8.safetensors"


def pack(pipeline: Path, folder: Path) -> None:
    """Write a pipeline's U-Net as `folder/unet.int8.safetensors`: rows of 8-bit integers and their scales.

    A weight with two or more axes becomes round(row / s), s = max |row| / 127, one float16 scale s a row, so the
    error of a weight is at most half a scale; norms and biases stay float16.
    """
    from safetensors.torch import load_file, save_file

    packed = {}
    for name, value in load_file(str(pipeline / "unet" / "diffusion_pytorch_model.safetensors")).items():
        if value.dim() < 2:
            packed[name] = value.half()
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=1e-7).half()
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).char().view(value.shape)
        packed[f"{name}.scale"] = scale
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / (PACKED + ".part")
    save_file(packed, str(beside))
    beside.replace(folder / PACKED)


def unpack(file: Path, out: Path) -> None:
    """Write the float16 U-Net of `pack`ed weights to `out`."""
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
    """Where assembled pipelines are kept: $PALIMPSEST_CACHE, or ~/.cache/palimpsest."""
    return Path(os.environ.get("PALIMPSEST_CACHE") or Path.home() / ".cache" / "palimpsest") / "tiny"


def assembled(packed: Path, base: Path) -> Path:
    """The plain pipeline folder of a packed U-Net, made at the first call: `base` with the other U-Net.

    The folder's name holds the packed file's hash, so new weights make a new folder. It is built beside and renamed.
    """
    digest = hashlib.sha256((packed / PACKED).read_bytes()).hexdigest()[:12]
    folder = cache() / f"{packed.name}-{digest}"
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=cache()))
    shutil.copytree(base, beside, dirs_exist_ok=True)
    unpack(packed / PACKED, beside / "unet" / "diffusion_pytorch_model.safetensors")
    try:
        beside.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(beside)
    return folder
