"""What a Stable Diffusion 1.4 costs here and in plain diffusers, side by side: a random folder of its shapes.

    python bench/real.py --scale 0.1                    # a tenth of the channels: a minute
    python bench/real.py --scale 1 --size 256           # the real shapes

Every number is taken in a process of its own, so that peaks of memory do not meet. The folder is made once and removed
at the end, unless --folder names where it stays.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WAYS = ("load", "fingerprint", "uce 1", "uce 100", "esd", "esd rank 8", "picture")
PLAIN = ("load", "picture")  # what plain diffusers does as well
STEPS = 2  # of the picture


def make(folder: Path, scale: float) -> None:
    """A random pipeline of SD 1.4's shapes, its channels scaled; the small models' tokenizer."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from palimpsest import tiny

    library: Any = import_module("diffusers")  # its annotations do not describe what it takes

    def wide(n: int) -> int:
        return max(32, int(n * scale) // 32 * 32)

    torch.manual_seed(0)
    text = wide(768)
    pipeline = library.StableDiffusionPipeline(
        vae=library.AutoencoderKL(
            block_out_channels=tuple(map(wide, (128, 256, 512, 512))), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=text, intermediate_size=4 * text, projection_dim=text,
                num_hidden_layers=12, num_attention_heads=text // 32,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(Path(tiny.path("sd")) / "tokenizer"),
        unet=library.UNet2DConditionModel(
            sample_size=64, block_out_channels=tuple(map(wide, (320, 640, 1280, 1280))), cross_attention_dim=text,
            attention_head_dim=8,
        ),
        scheduler=library.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


def plain(way: str, folder: Path, size: int) -> Callable[[], Any]:
    """What is timed of plain diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    def load() -> Any:
        return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)

    if way == "load":
        return load
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return lambda: pipe("a star", num_inference_steps=STEPS, height=size, width=size, generator=generator)


def ours(way: str, folder: Path, size: int) -> Callable[[], Any]:
    """What is timed here."""
    from palimpsest import run
    from palimpsest.core.concept import Concept, Request
    from palimpsest.core.sampling import Sampling
    from palimpsest.erase.esd import ESD
    from palimpsest.erase.uce import UCE
    from palimpsest.hosts.load import families

    if way == "load":
        list(families())  # as the import of a pipeline's class, which is not timed either
        _ = import_module("diffusers").StableDiffusionPipeline
        return lambda: run.load(folder)
    host = run.load(folder)
    if way == "fingerprint":
        return host.fingerprint
    if way == "picture":
        return lambda: host.sample(["a star"], [0], Sampling(steps=STEPS, size=size))
    host.fingerprint()  # that is a number of its own
    if way.startswith("uce"):
        names = tuple(Concept(name=f"star {i}") for i in range(int(way.split()[1])))
        return lambda: UCE()(host, Request(target=names))
    host.defaults = Sampling(steps=STEPS, guidance=3.0, size=size)
    system = ESD(steps=1, batch=1, rank=8 if "rank" in way else 0)
    return lambda: system(host, Request(target=(Concept(name="star"),)))


def one(args: argparse.Namespace) -> None:
    """Times one way in this process; prints seconds and the bytes that it took beside what was there."""
    work = (plain if args.plain else ours)(args.one, args.folder, args.size)
    before, start = _peak(), time.perf_counter()
    work()
    print(json.dumps({"seconds": time.perf_counter() - start, "more": _peak() - before, "peak": _peak()}))


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measured(args: argparse.Namespace, way: str, *, by_plain: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, "--folder", str(args.folder), "--size", str(args.size)]
    done = subprocess.run([*command, *(["--plain"] if by_plain else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="of the channels; 1: the real shapes")
    parser.add_argument("--size", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", type=Path, help="where the pipeline lies, or is made and stays")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args)
    kept, args.folder = args.folder is not None, args.folder or Path(tempfile.mkdtemp(prefix="real-"))
    try:
        if not (args.folder / "model_index.json").is_file():
            make(args.folder, args.scale)
        table = Table(title=f"SD 1.4's shapes, channels x {args.scale:g}, {args.size} px, {STEPS} steps a picture")
        for heading in ("", "seconds", "of diffusers", "MiB more", "MiB at most", "of diffusers"):
            table.add_column(heading, justify="left" if not heading else "right")
        for way in args.ways:
            mine = measured(args, way)
            theirs = measured(args, way, by_plain=True) if way in PLAIN else None
            ratio = {k: "" if theirs is None else f"{mine[k] / theirs[k]:.2f}" for k in ("seconds", "peak")}
            table.add_row(
                way, f"{mine['seconds']:.2f}", ratio["seconds"], f"{mine['more'] / 2**20:.0f}",
                f"{mine['peak'] / 2**20:.0f}", ratio["peak"],
            )  # fmt: skip
        Console(width=100).print(table)
    finally:
        if not kept:
            shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
