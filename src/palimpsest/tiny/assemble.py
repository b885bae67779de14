"""Retrain oracles take half the room: 8-bit weights, and everything else borrowed from the model they mirror."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

# A packed file, and which file of the model it stands for.
PACKED = {
    "unet.int8.safetensors": "unet/diffusion_pytorch_model.safetensors",
    "model.int8.safetensors": "model.safetensors",
}


def packed_in(folder: Path) -> str | None:
    """The name of a folder's packed file; None where it has none."""
    return next((name for name in PACKED if (folder / name).is_file()), None)


def pack(model: Path, folder: Path) -> None:
    """Write a pipeline's U-Net, or a classifier, into `folder`: rows of 8-bit integers and their scales.

    A weight with two or more axes becomes round(row / s), s = max |row| / 127, one float16 scale s a row, so the
    error of a weight is at most half a scale; norms and biases stay float16.
    """
    from safetensors.torch import load_file, save_file

    file, source = next((name, model / whole) for name, whole in PACKED.items() if (model / whole).is_file())
    packed = {}
    for name, value in load_file(str(source)).items():
        if value.dim() < 2:
            packed[name] = value.half() if value.is_floating_point() else value
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=1e-7).half()
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).char().view(value.shape)
        packed[f"{name}.scale"] = scale
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / (file + ".part")
    save_file(packed, str(beside))
    beside.replace(folder / file)


def unpack(file: Path, out: Path) -> None:
    """Write the float16 weights of a `pack`ed file to `out`."""
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
    """The plain folder of packed weights, made at the first call: `base` with the other weights.

    The folder's name holds the packed file's hash, so new weights make a new folder. It is built beside and renamed.
    """
    file = packed_in(packed)
    assert file is not None, f"{packed} holds no packed weights"
    digest = hashlib.sha256((packed / file).read_bytes()).hexdigest()[:12]
    folder = cache() / f"{packed.name}-{digest}"
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=cache()))
    shutil.copytree(base, beside, dirs_exist_ok=True)
    unpack(packed / file, beside / PACKED[file])
    try:
        beside.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(beside)
    return folder
