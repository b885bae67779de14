"""Merging models in files: peak memory above start and processor seconds, at the size of SDXL's U-Net or a part of it.

Run: OMP_NUM_THREADS=1 python bench/merge.py --scale 1 --folder /somewhere/with/40/GB     # random weights, float16
Each row is a process of its own. "whole tensors" is what a script does that adds up tensors read whole. sd-mecha and
mergekit are held beside ours where they are installed (`pip install sd-mecha mergekit`): one thread, float32, their own
readers and writers. They write a merged model in float16; we write a patch in float32, of twice the bytes, and hash
what is read and written, so that the patch knows its base and its seal. "own" is memory of the process alone; "all"
counts pages of files that lie in memory for it, too, which the system can take back.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
PEERS = {"sd-mecha": "sd_mecha", "mergekit": "mergekit"}


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


def paths(folder: Path) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in MODELS]


def ours(folder: Path, ties: bool) -> None:
    from palimpsest.core.change import Change
    from palimpsest.core.stored import Tensors
    from palimpsest.merge.diffusion_soup import DiffusionSoup
    from palimpsest.merge.ties import TIES

    base, *tuned = (Tensors(path) for path in paths(folder))
    rule = TIES() if ties else DiffusionSoup()
    rule([Change(before=base, after=after) for after in tuned], base, out=folder / "out.safetensors")


def whole(folder: Path, ties: bool) -> None:
    handles = [safe_open(path, framework="pt") for path in paths(folder)[1:]]
    names = list(handles[0].keys())
    mean = {key: torch.stack([h.get_tensor(key).float() for h in handles]).mean(0).half() for key in names}
    save_file(mean, str(folder / "out.safetensors"))


def sd_mecha(folder: Path, ties: bool) -> None:
    import sd_mecha as peer  # type: ignore[import-not-found]

    base, *tuned = (peer.model(path, config="sdxl-diffusers_unet_only") for path in paths(folder))
    recipe = peer.add_difference_ties(base, *tuned, alpha=1.0, k=0.2) if ties else peer.n_average(*tuned)
    peer.merge(recipe, merge_dtype=torch.float32, threads=0, output=folder / "out.safetensors")


def mergekit(folder: Path, ties: bool) -> None:
    from mergekit.graph import Executor  # type: ignore[import-not-found]
    from mergekit.options import MergeOptions  # type: ignore[import-not-found]
    from mergekit.scripts import merge_raw_pytorch as peer  # type: ignore[import-not-found]

    base, *tuned = map(str, paths(folder))
    models = [{"model": path, "parameters": {"weight": 1.0, "density": 0.2}} for path in tuned]
    rule = {"merge_method": "ties", "base_model": base} if ties else {"merge_method": "linear"}
    config = peer.RawPyTorchMergeConfig(**rule, models=models, dtype="float32", out_dtype="float16")
    plan = peer.plan_flat_merge(config, str(folder / "out"), False, False, MergeOptions())
    Executor(plan, math_device="cpu", storage_device="cpu").execute()


WAYS: dict[str, Callable[[Path, bool], None]] = {
    "ours": ours, "sd-mecha": sd_mecha, "mergekit": mergekit, "whole tensors": whole,
}  # fmt: skip


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Megabytes above start at the peak, and processor seconds. It looks every five milliseconds."""
    held, done = [memory()], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            held.append(memory())

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    done.set()
    watch.join()
    own, all_ = (max(h[i] for h in held) - held[0][i] for i in (0, 1))
    return {"own": own, "all": all_, "seconds": seconds}


def memory() -> tuple[float, float]:
    """MiB of this process: its own, and all that lie in memory for it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["VmRSS"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/merge"))
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--rule", choices=("average", "ties"), default=None)
    parser.add_argument("--way", choices=tuple(WAYS), default=None)
    given = parser.parse_args()
    if given.way and given.rule:
        print(json.dumps(measured(lambda: WAYS[given.way](given.folder, given.rule == "ties"))))
        return
    weights = make(given.folder, given.scale)
    print(f"3 models of {weights / 1e9:.2f} billion weights, float16, one thread")
    for rule in ("average", "ties"):
        for way in WAYS:
            if given.way not in (None, way) or (way, rule) == ("whole tensors", "ties"):
                continue
            if way in PEERS and importlib.util.find_spec(PEERS[way]) is None:
                print(f"{rule:8} {way:14} is not installed", flush=True)
                continue
            args = [sys.executable, __file__, "--folder", str(given.folder), "--way", way, "--rule", rule]
            ran = subprocess.run(args, capture_output=True, text=True)
            if ran.returncode:
                print(f"{rule:8} {way:14} failed: {ran.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            done = json.loads(ran.stdout.splitlines()[-1])
            print(
                f"{rule:8} {way:14} peak above start {done['own']:6.0f} MiB own, {done['all']:6.0f} MiB all; "
                f"{done['seconds']:6.1f} s of processor",
                flush=True,
            )


if __name__ == "__main__":
    main()
