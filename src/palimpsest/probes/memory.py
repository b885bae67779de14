"""What an audit and a training will take in memory beside the model's weights, told before either begins."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from palimpsest import machine
from palimpsest.core.errors import PalimpsestError, TooLarge
from palimpsest.core.host import Cond, Denoiser
from palimpsest.machine import amount
from palimpsest.ops.memory import imagined, peak_bytes
from palimpsest.probes.crew import at_once
from palimpsest.probes.plan import Plan
from palimpsest.train.trained import Trained
from palimpsest.train.training import Training

LARGE = 10**8  # parameters of a denoiser from which a step may take more than anybody has


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Bytes beside the weights, which are there already.

    Args:
        shown: how many pictures the audit keeps. pictures: bytes that they take, until the receipt is written, and in
            its folder as well. hung: bytes that a set of them takes once more while it is put in order.
        drawn: pictures that are drawn at once. drawing: bytes that this takes, at its worst moment.
        training: bytes of a step of training, with what is trained, its gradient and moments; None: no training, or
            one of which nothing is known beforehand.
    """

    shown: int
    pictures: int
    hung: int
    drawn: int
    drawing: int
    training: int | None

    def told(self) -> str:
        """In words, a line."""
        text = (
            f"Memory beside the weights: {amount(self.pictures)} for {self.shown:,} pictures that are kept until the "
        )
        text += f"receipt is written (on disk too), about {amount(self.drawing)} to draw {self.drawn} at once"
        return text + (f", about {amount(self.training)} to train." if self.training else ".")


def taken(host: Any, plan: Plan, *, method: Any = None, oracle: bool = False, batch: int | None = None) -> Taken | None:
    """What an audit of a plan, and a system's training before it, take; None of a model that does not say its size.

    Args:
        batch: pictures that are drawn at once; the model's choice where not given.

    Cost: nothing is computed; some seconds where the denoiser is large (`ops.memory.peak_bytes`), none where it is not.
    """
    side = plan.sampling.over(host.defaults).size or getattr(host, "default_size", None)
    if side is None or not isinstance(host, Denoiser):
        return None
    one, sets = 3 * side * side, 3 if oracle else 2
    rows = min(batch or at_once(host, plan), plan.pictures(sets))
    weights = sum(p.numel() for part in host.parts("denoiser").values() for p in part.parameters())
    counted = weights >= LARGE
    return Taken(
        shown=plan.pictures(sets),
        pictures=plan.pictures(sets) * one,
        hung=len(plan.shots) * one,
        drawn=rows,
        drawing=_drawing(host, plan, rows, side) if counted else 0,
        training=max((_training(host, part, side) for part in _trainings(method)), default=0) if counted else 0,
    )


def refuse_too_large(host: Any, need: Taken | None) -> None:
    """Raises TooLarge where an audit's pictures, drawing or training do not fit what is free now."""
    if need is None:
        return
    place = str(host.device)
    free, here = machine.available("cpu"), machine.available(place)
    kept = need.pictures + need.hung
    work = max(need.drawing, need.training or 0)
    ways = "fewer --prompts or --seeds, a shorter --prompts-file, or a machine with more memory"
    if free is not None and kept + (work if place == "cpu" else 0) > free and kept > free / 2:
        raise TooLarge(
            f"{need.shown:,} pictures take {amount(kept)} while they are put in order, and {amount(free)} are free; "
            f"nothing was drawn. Ask for {ways}."
        )
    if here is None or work <= here:
        return
    what, way = (f"drawing {need.drawn} pictures at once", "fewer --at-once, --dtype bfloat16")
    if work == need.training:
        what, way = "a step of training", "--checkpointing, a low rank (--rank 8), a smaller batch, --dtype bfloat16"
    raise TooLarge(
        f"On {host.name} {what} takes about {amount(work)} beside the weights, and {amount(here)} are free on {place}; "
        f"nothing was done. Try {way}, or a machine with more memory."
    )


def _trainings(method: Any) -> list[Training]:
    """A system, where it trains, and what trains inside it."""
    if method is None:
        return []
    parts = [method, *(getattr(method, f.name) for f in fields(method))]
    return [part for part in parts if isinstance(part, Training)]


def _drawing(host: Denoiser, plan: Plan, rows: int, side: int) -> int:
    """A guided step of sampling, or the pictures' decoding, whichever takes more."""
    twice = 2 if host.guided(plan.sampling.over(host.defaults).guidance or 1.0) else 1
    cond, shape, t = _cond(host, rows * twice), _shape(host, side), _time(host)

    def step() -> Tensor:
        with torch.no_grad():
            x = torch.zeros(rows * twice, *shape, device=host.device)
            return host.denoise(x, torch.full((len(x),), t, device=host.device), cond)

    def decode() -> Tensor:
        with torch.no_grad():
            return host.pixels(torch.zeros(1, *shape, device=host.device))

    return max(peak_bytes(step), peak_bytes(decode))


def _training(host: Any, part: Training, side: int) -> int:
    """A step on one loss, and Adam's two moments; 0 where the system does not say beforehand what it trains."""
    names: list[str] = []
    with suppress(PalimpsestError):
        names = list(part.trains(host))
    if not names:
        return 0
    cond, shape, t = _cond(host, part.batch), _shape(host, side), _time(host)
    leaves: list[int] = []

    def step() -> None:
        trained = Trained(host.root, names, rank=part.rank)
        leaves.append(sum(leaf.numel() * leaf.element_size() for leaf in trained.leaves.values()))
        x = torch.zeros(part.batch, *shape, device=host.device)
        with trained.frozen(), trained.student():
            error = host.denoise(x, torch.full((len(x),), t, device=host.device), cond).square().mean()
            error.backward(inputs=list(trained.leaves.values()))

    return peak_bytes(step) + 2 * leaves[0]


def _cond(host: Denoiser, rows: int) -> Cond:
    """A prompt for each row, without its text, which only a model's words need."""
    with torch.no_grad():
        cond = host.encode(["a"]).repeat(rows)
    return Cond(states=cond.states, lengths=cond.lengths, pooled=cond.pooled, extra=cond.extra)


def _shape(host: Denoiser, side: int) -> tuple[int, ...]:
    """Of one picture's latents."""
    with imagined(), torch.no_grad():
        return tuple(host.latents(torch.zeros(1, 3, side, side)).shape[1:])


def _time(host: Denoiser) -> float:
    """A time at which the model was trained."""
    return float(host.times(1, torch.Generator().manual_seed(0))[0])
