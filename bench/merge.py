"""Merging models in files: peak memory above start and processor seconds, at the size of SDXL's U-Net or a part of it.

Run: OMP_NUM_THREADS=1 python bench/merge.py --scale 1 --folder /somewhere/with/40/GB     # random weights, float16
Each row is a process of its own, on warm files. "whole tensors" is what a script does that adds up tensors read whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MODELS = ("base", "one", "two", "three")
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
WAYS = ("diffusion_soup", "ties", "whole tensors")


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes of SDXL's U-Net; of its tensors the first that make up a share of it."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model: Any = UNet2DConditionModel.from_config(SDXL)
    found, due = {}, scale * sum(t.numel() for t in model.parameters())
    for name, t in sorted(model.state_dict().items(), key=lambda item: -item[1].numel()):
        if due > 0:
            found[name] = tuple(t.shape)
            due -= t.numel()
    return found


def make(folder: Path, scale: float) -> int:
    """Writes the models; their number of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    due = shapes(scale)
    for seed, name in enumerate(MODELS):
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            torch.manual_seed(seed)
            save_file({key: torch.randn(shape).mul_(0.02).half() for key, shape in due.items()}, str(path))
    return sum(torch.Size(shape).numel() for shape in due.values())


def merge(folder: Path, way: str) -> None:
    from palimpsest.core.change import Change
    from palimpsest.core.stored import Tensors
    from palimpsest.merge.diffusion_soup import DiffusionSoup
    from palimpsest.merge.ties import TIES

    base, *tuned = (Tensors(folder / f"{name}.safetensors") for name in MODELS)
    start, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if way == "whole tensors":
        handles = [safe_open(folder / f"{name}.safetensors", framework="pt") for name in MODELS[1:]]
        mean = {key: torch.stack([h.get_tensor(key).float() for h in handles]).mean(0).half() for key in base.names()}
        save_file(mean, str(folder / "out.safetensors"))
    else:
        rule = TIES() if way == "ties" else DiffusionSoup()
        rule([Change(before=base, after=after) for after in tuned], base, out=folder / "out.safetensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"MiB": (peak - start) / 1024, "seconds": time.process_time() - began}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/merge"))
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--way", choices=WAYS, default=None)
    given = parser.parse_args()
    if given.way:
        merge(given.folder, given.way)
        return
    weights = make(given.folder, given.scale)
    print(f"3 models of {weights / 1e9:.2f} billion weights, float16, one thread")
    for way in WAYS:
        args = [sys.executable, __file__, "--folder", str(given.folder), "--way", way]
        done = json.loads(subprocess.run(args, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"{way:16} peak {done['MiB']:7.0f} MiB above start, {done['seconds']:6.1f} s of processor", flush=True)


if __name__ == "__main__":
    main()
