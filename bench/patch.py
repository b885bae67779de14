"""A 1,000-concept patch at the real shapes of Stable Diffusion 1.4: made, saved, loaded, applied, reverted, exported.

    OMP_NUM_THREADS=1 python bench/patch.py [--concepts 1000] [--json FILE]

Only the 32 cross-attention key and value matrices (24,960 x 768 in all, 77 MB) exist, with random weights; the states
of the concepts' last tokens are random and collinear as real ones are. "cpu" is the process's own time, which other
work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from closed_form import OUT, D, states
from rich.console import Console
from rich.table import Table
from torch import nn

from palimpsest.core.fingerprint import fingerprint, tensors_of
from palimpsest.core.patch import Patch
from palimpsest.export import export_patch
from palimpsest.ops import closed_form


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    work: str
    seconds: float
    cpu: float
    mib: float | None


class Model:
    """The part of the model that the patch changes, as a host."""

    name = "SD 1.4's cross-attention"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.root = nn.Module()
        layers = nn.ModuleList()
        for out in OUT:
            layer = nn.Linear(D, out, bias=False)
            with torch.no_grad():
                layer.weight.normal_(std=D**-0.5, generator=generator)
            layers.append(layer)
        self.root.add_module("unet", nn.ModuleDict({"transformer_blocks": layers}))

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {"text_encoder": nn.Module()} if role == "text_encoder" else {}


def measure(concepts: int) -> list[Row]:
    rows: list[Row] = []
    generator = torch.Generator().manual_seed(1)
    model = Model()
    weights: dict[str, Any] = dict(tensors_of(model.root))
    targets, neutral = states(concepts, generator), states(1, generator)
    base = model.fingerprint()

    def timed(work: str, do: Callable[[], Any], size: Callable[[Any], int] | None = None) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = do()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        rows.append(Row(work=work, seconds=seconds, cpu=cpu, mib=None if size is None else size(result) / 2**20))
        return result

    def make() -> Patch:
        edit = closed_form.erase(targets, neutral.expand_as(targets))
        return Patch(base=base, deltas=closed_form.edit_layers(weights, edit))

    def apply() -> None:
        with patch.applied(model):
            rows.append(Row(work="apply", seconds=time.perf_counter() - start, cpu=time.process_time() - cpu, mib=None))

    patch: Patch = timed(f"UCE of {concepts} concepts", make, lambda p: p.nbytes())
    with tempfile.TemporaryDirectory() as folder:
        path = timed("save", lambda: patch.save(Path(folder) / "patch.safetensors"), lambda p: p.stat().st_size)
        timed("load, seal checked", lambda: Patch.load(path))
        start, cpu = time.perf_counter(), time.process_time()
        timed("apply, then revert", apply)
        timed("export as LoRA", lambda: export_patch(patch, model, "peft", folder), lambda e: e.nbytes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.concepts)
    table = Table(title="A patch at SD 1.4's shapes, one thread")
    for heading in ("work", "s", "cpu s", "MiB"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for r in rows:
        table.add_row(r.work, f"{r.seconds:.2f}", f"{r.cpu:.2f}", "" if r.mib is None else f"{r.mib:.1f}")
    Console(width=100).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
