"""What erasing costs on a whole pipeline: seconds and denoiser rows for each step, memory, and the floor.

    OMP_NUM_THREADS=1 python bench/erase.py [--model FOLDER] [--steps 8] [--json FILE]

Without a folder a U-Net of Stable Diffusion 1's layout at a quarter of its width is built with random weights; cost
does not depend on what weights hold. The floor of a training step is the forwards and the one backward that its
formula needs, timed alone in the same run. Memory is what the run adds to the loaded model; the bound is 0.3 of the
model plus four times the trained part (leaf, gradient, two moments), so that the total stays within 1.3 models plus
the trained part.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.method import ModelEdit
from palimpsest.core.trace import Trace
from palimpsest.erase.esd import ESD
from palimpsest.erase.rece import RECE
from palimpsest.erase.uce import UCE
from palimpsest.train.finetune import FineTune

REQUEST = Request(target=(Concept(name="star"),), keep=(Concept(name="moon"), Concept(name="house")))
SMALL = {"batch": 1, "keep_batch": 1, "groups": 1, "mask_prompts": 1, "mask_points": 1, "captions": 8}
"""Beside steps, walk_steps and pictures: the fields that make runs comparable, where a system has them."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Denoiser rows of a run at batch 1 of `steps` steps, with as many walk steps and pictures.

    Args:
        forward, backward: rows for each step without and with gradients.
        once_forward, once_backward: rows before the first step, in units of steps (a picture costs 2 x walk steps).
    """

    forward: float
    backward: float
    once_forward: Callable[[int], float] = lambda n: 0.0
    once_backward: Callable[[int], float] = lambda n: 0.0

    def rows(self, n: int) -> tuple[float, float]:
        """For each step, all counted."""
        return self.forward + self.once_forward(n) / n, self.backward + self.once_backward(n) / n


def one_set(n: int) -> float:
    """n pictures, each a walk of n steps with both branches of guidance."""
    return 2.0 * n * n


def two_sets(n: int) -> float:
    return 2 * one_set(n)


FORMULAS = {
    "erase/all_but_one": Formula(forward=2, backward=2),
    "erase/ant": Formula(
        # a walk serves its late steps; before, one walk and one point for a mask
        forward=0,
        backward=4,
        once_forward=lambda n: 2.0 * n * (1 + -(-n // (n - round(0.14 * n)))),
        once_backward=lambda n: 4.0,
    ),
    "erase/concept_ablation": Formula(forward=1, backward=1, once_forward=one_set),
    "erase/domain_correction": Formula(
        # half of the steps train the discriminator alone
        forward=1.5,
        backward=1,
        once_forward=two_sets,
    ),
    "erase/salun": Formula(forward=1, backward=2, once_forward=two_sets, once_backward=lambda n: 2.0 * n),
}
"""What the papers' formulas need; systems that are not here are measured without a floor."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line; seconds and rows are for each training step, or for the whole run of a closed form."""

    work: str
    seconds: float
    floor: float | None
    rows: float
    formula: float | None
    mib: float | None
    bound: float | None


def quarter_width() -> Any:
    """Stable Diffusion 1's layout with random weights, as a host."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from palimpsest.hosts.sd import SDHost

    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    letters = [*map(chr, range(33, 127)), *(chr(b) + "</w>" for b in range(33, 127))]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=12,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    of_parts: Any = StableDiffusionPipeline  # its annotations know neither all schedulers nor parts that are None
    pipeline = of_parts(
        vae=AutoencoderKL(latent_channels=4, block_out_channels=(32,), norm_num_groups=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16, block_out_channels=(80, 160, 320, 320), attention_head_dim=8, cross_attention_dim=768,
            norm_num_groups=16,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return SDHost(pipeline, name="quarter-width SD 1")


def loaded(model: str | None) -> Any:
    """The host of a folder; without one, the model that is built."""
    if model is None:
        return quarter_width()
    from palimpsest.hosts.load import load

    return load(model)


def unet_mib(host: Any) -> float:
    return sum(p.numel() * p.element_size() for p in host.parts("denoiser")["unet"].parameters()) / 2**20


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Best of some."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def give_back() -> None:
    """Returns freed memory to the system, so that the next peak counts all that the work takes (glibc only)."""
    gc.collect()
    libc = ctypes.util.find_library("c")
    if libc is not None and hasattr(ctypes.CDLL(libc), "malloc_trim"):
        ctypes.CDLL(libc).malloc_trim(0)


def parts(host: Any, method: FineTune) -> tuple[float, float]:
    """Seconds of one forward row and of one forward and backward row, as a training step runs them."""
    cond = host.encode(["star"])
    x = torch.randn(1, host.channels, *(host.default_size // host.pipeline.vae_scale_factor,) * 2)
    t = torch.tensor([500])
    named = dict(host.root.named_parameters())
    trained = [named[n] for n in method.trains(host)]

    def forward() -> None:
        with torch.no_grad():
            host.denoise(x, t, cond)

    def backward() -> None:
        torch.autograd.grad(host.denoise(x, t, cond).square().mean(), trained, allow_unused=True)

    one = seconds(forward)
    for p in trained:
        p.requires_grad_(True)
    both = seconds(backward)
    for p in trained:
        p.requires_grad_(False)
    return one, both


def run(host: Any, method: ModelEdit) -> tuple[float, Trace]:
    give_back()
    trace = Trace()
    start = time.perf_counter()
    method(host, REQUEST, trace=trace)
    return time.perf_counter() - start, trace


def measure(host: Any, steps: int) -> list[Row]:
    rows = []
    size = unet_mib(host)
    for closed in (UCE(), RECE()):
        run(host, closed)
        wall, trace = run(host, closed)
        mib = None if trace.peak_bytes is None else trace.peak_bytes / 2**20
        rows.append(Row(work=closed.card.name, seconds=wall, floor=None, rows=0, formula=0, mib=mib, bound=None))
    for train in ("xattn", "noxattn"):
        method = ESD(steps=steps, walk_steps=steps, train=train)  # type: ignore[arg-type]
        one, both = parts(host, method)
        part = trained_mib(host, method)
        for walks, forwards in (("kept", 2.0), ("fresh", steps + 1.0), ("student", steps + 3.0)):
            tried = ESD(steps=steps, walk_steps=steps, train=train, walks=walks)  # type: ignore[arg-type]
            wall, trace = run(host, tried)
            rows.append(
                Row(
                    work=f"ESD {train}, {walks} walks of {steps}",
                    seconds=wall / steps,
                    floor=forwards * one + both,
                    rows=trace.forwards["denoiser"] / steps,
                    formula=forwards + 1,
                    mib=None if trace.peak_bytes is None else trace.peak_bytes / 2**20,
                    bound=0.3 * size + 4 * part,
                )
            )
    return rows


def fine_tunings() -> list[str]:
    """All but ESD, which has lines of its own."""
    tuned = [i for i, e in catalog.entries().items() if i.startswith("erase/") and e.card.family == "fine-tuning"]
    return [i for i in tuned if i != "erase/esd"]


def trained_mib(host: Any, method: FineTune) -> float:
    """What is trained, in float32: the tensors themselves, or the two factors of each in low rank."""
    named = dict(host.root.named_parameters())
    trained = [named[n] for n in method.trains(host)]
    if method.rank:
        count = sum(method.rank * (p.shape[0] + p[0].numel()) for p in trained if p.ndim >= 2)
    else:
        count = sum(p.numel() for p in trained)
    return count * 4 / 2**20


def others(model: str | None, system: str, steps: int, threads: int) -> Row:
    """One line of a fine-tuning system, with settings that make its cost comparable.

    To be run in a process of its own: what other systems left with the allocator would count as this one's memory.
    """
    torch.set_num_threads(threads)
    host = loaded(model)
    size = unet_mib(host)
    cls: Any = catalog.load(system)
    own = {f.name for f in fields(cls)}
    wanted = {"steps": steps, "walk_steps": steps, "pictures": steps, **SMALL}
    method = cls(**{k: v for k, v in wanted.items() if k in own})
    run(host, method)  # what the first run of a kind leaves with the process is not the system's
    wall, trace = run(host, method)
    formula = FORMULAS.get(system)
    floor = rows = part = None
    if isinstance(method, FineTune):
        part = trained_mib(host, method)
    if isinstance(method, FineTune) and formula is not None:
        (forward, backward), (one, both) = formula.rows(steps), parts(host, method)
        floor, rows = forward * one + backward * both, forward + backward
    return Row(
        work=method.card.name,
        seconds=wall / steps,
        floor=floor,
        rows=trace.forwards.get("denoiser", 0) / steps,
        formula=rows,
        mib=None if trace.peak_bytes is None else trace.peak_bytes / 2**20,
        bound=None if part is None else 0.3 * size + 4 * part,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder of the Stable Diffusion 1 or 2 family")
    parser.add_argument("--steps", type=int, default=8, help="of training, and of each walk")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    host = loaded(args.model)
    rows = measure(host, args.steps)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
        rows += [alone.apply(others, (args.model, s, args.steps, args.threads)) for s in fine_tunings()]
    table = Table(title=f"Erasing on {host.name} (U-Net {unet_mib(host):.0f} MiB), batch 1, {args.threads} thread(s)")
    for heading in ("work", "s (a step)", "floor s", "rows (a step)", "formula", "MiB added", "bound MiB"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for r in rows:
        cells = [r.seconds, r.floor, r.rows, r.formula, r.mib, r.bound]
        forms = ["{:.3f}", "{:.3f}", "{:.2f}", "{:.2f}", "{:.0f}", "{:.0f}"]
        table.add_row(r.work, *("" if c is None else f.format(c) for f, c in zip(forms, cells, strict=True)))
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
