"""Points on the way from noise to a picture, with what classifier-free guidance predicted there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from palimpsest.core.host import Denoiser
from palimpsest.core.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Visited:
    """n points.

    Args:
        row: (n,) int64, which prompt the walk was asked for.
        x: (n, c, h, w) noisy latents. t: (n,) the model's own time.
        x0_cond, x0_null: (n, c, h, w) clean latents predicted there with and without the prompt.
    """

    row: Tensor
    x: Tensor
    t: Tensor
    x0_cond: Tensor
    x0_null: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: Tensor | slice) -> Visited:
        return Visited(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def cat(parts: Sequence[Visited]) -> Visited:
        return Visited(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Visited)})


@torch.no_grad()
def visit(
    host: Denoiser,
    prompts: Sequence[str],
    batch: int,
    generator: torch.Generator,
    *,
    steps: int,
    guidance: float,
    stops: Tensor | None = None,
    first: int | None = None,
) -> Visited:
    """Walks `batch` rows towards prompts drawn at random.

    Args:
        stops: (batch,) the step, from 0, at which each row is kept; the walk ends at the last of them. None keeps
            every row at every step (steps x batch points, in order of steps).
        first: how many steps are walked, from the noise on; None walks all.

    Cost: one batched forward of 2 x batch rows for each step walked; none beside what sampling takes.
    """
    rows = torch.randint(len(prompts), (batch,), generator=generator)
    seeds = torch.randint(2**31, (batch,), generator=generator).tolist()
    found, order = [], []
    for step in host.walk([prompts[int(i)] for i in rows], seeds, Sampling(steps=steps, guidance=guidance)):
        here = torch.arange(batch) if stops is None else (stops == step.index).nonzero().squeeze(1)
        if len(here):
            cond, null = step.x0_cond, step.x0_null
            if cond is None or null is None:
                cond, null = step.x0(step.cond, step.null)
            points = Visited(row=rows, x=step.x, t=step.t, x0_cond=cond, x0_null=null)
            found.append(points[here])
            order.append(here)
        if step.index + 1 == first or (stops is not None and step.index >= int(stops.max())):
            break
    points = Visited.cat(found)
    return points if stops is None else points[torch.cat(order).argsort()]
