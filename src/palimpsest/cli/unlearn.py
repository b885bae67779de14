"""palimpsest unlearn"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli.options import Loading, held_out, method_of, say
from palimpsest.core import catalog


@dataclass(frozen=True, kw_only=True)
class Unlearn(Loading):
    """Make a classifier forget a class, an identity or given samples. Writes patch, deletion record and receipt."""

    model: str
    """The classifier: tiny/cifar, a transformers, timm or palimpsest folder, or a .safetensors state and --factory."""
    data: str
    """What it learned from: an image folder, a folder of parquet files, a .parquet or an .npz file."""
    forget: str
    """class:cat, class:cat,dog, identity:s7, or samples:list.csv with paths or row numbers."""
    method: str = ""
    """The system, e.g. salun; the default is named when used. Its own options follow as --name value."""
    split: str = "train"
    """The part of the data that the model learned from, where the data have parts."""
    test: str = ""
    """Data that the model never saw, for the receipt; where the data have a part called test, that part."""
    oracle: tuple[str, ...] = ()
    """Models that were trained without what is forgotten, for the receipt to compare with."""
    size: int | None = None
    """Side in pixels to resize pictures to; needed where they differ in size."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and list them, instead of stopping."""
    factory: str = ""
    """module:function that makes your own model; its code is run."""
    out: Path = Path("unlearned")
    """Folder for the results."""
    seed: int = 0
    """Of everything random in the method."""
    resume: bool = False
    """Go on from the checkpoint in the out folder."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.data.forget import ForgetRequest
        from palimpsest.data.read import read
        from palimpsest.progress import bars

        entry = catalog.find(self.method or run.DEFAULT_UNLEARNER, "unlearn")
        method = method_of(entry, rest)
        request = ForgetRequest.parse(self.forget)
        if not self.method:
            print(f"No --method given: using {entry.card.name} ({entry.id}), the default.")
        data = read(self.data, split=self.split, size=self.size, skip_unreadable=self.skip_unreadable)
        for name in data.skipped:
            print(f"skipped  {name}")
        host = run.load(self.model, device=self.device, dtype=self.dtype, factory=self.factory, labels=data.classes)
        test = held_out(self.test, self.data, size=self.size, skip_unreadable=self.skip_unreadable)
        oracles = [run.load(name, device=self.device, dtype=self.dtype) for name in self.oracle]
        with bars() as progress:
            done = run.unlearn(
                host, data, request, method=method, test=test, retrained=oracles, out=self.out,
                seed=self.seed, resume=self.resume, command=command, progress=progress,
            )  # fmt: skip
        print(f"{done.record['samples']} of {done.record['of']} samples forgotten, skipped {len(data.skipped)}.")
        print(f"patch    {done.patch_path}\nrecord   {done.record_path}")
        if done.receipt is not None:
            say(done.receipt)
        return 0
