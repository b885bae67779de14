"""Options that several commands share, and what they print at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from palimpsest.core import catalog


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How models are loaded."""

    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the model; float32 is what readings are comparable in."""


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How much is looked at."""

    prompts: int = 20
    """Different prompts for each target."""
    seeds: int = 3
    """Seeds for each prompt."""
    sample_steps: int | None = None
    """Sampling steps; the model's own default where not given."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own default where not given."""
    judge: tuple[str, ...] = ()
    """Evaluators: folders of classifiers or CLIP models, or "nudenet". Drawn worlds bring their own."""
    sees: float | None = None
    """Draw as many seeds as a change of so many points in any one other concept needs to be seen 9 times of 10."""
    stop_early: bool = False
    """Look four times and stop drawing as soon as every answer is clear; intervals and p allow for the looks."""


def look(options: Looking) -> Any:
    """How much an audit looks at, as the verbs take it."""
    from palimpsest.run import Look

    return Look(
        prompts=options.prompts,
        seeds=options.seeds,
        steps=options.sample_steps,
        guidance=options.guidance,
        judges=options.judge,
        sees=options.sees,
        stop_early=options.stop_early,
    )


def method_of(entry: catalog.Entry, rest: list[str]) -> Any:
    """A system with the parameters that follow a command's own options."""
    return tyro.cli(catalog.load(entry.id), prog=f"palimpsest ... --method {entry.id}", args=rest)


def held_out(test: str, data: str, *, size: int | None, skip_unreadable: bool = False) -> Any:
    """Samples that a classifier did not learn from: the data named, or the data's own part called test; else None."""
    from palimpsest.data.read import read

    folder = Path(data).expanduser()
    own = folder.is_dir() and any(
        found for pattern in ("test/*/*", "test*.parquet", "data/test*.parquet") for found in folder.glob(pattern)
    )
    if not (test or own):
        return None
    return read(test or data, split="test", size=size, skip_unreadable=skip_unreadable)


def say(receipt: Any) -> None:
    """The receipt's sentences and where it was written."""
    print(receipt.summary())
    print(f"receipt  {receipt.html}\n         {receipt.json}")
