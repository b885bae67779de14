"""Pictures that a model draws itself, as clean latents, and their noisy versions: training data without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from palimpsest.core.host import Denoiser
from palimpsest.ops.prompts import batches


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """n pictures.

    Args:
        row: (n,) int64, which prompt each was drawn from.
        x0: (n, c, h, w) clean latents.
    """

    row: Tensor
    x0: Tensor

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, kw_only=True)
class Noised:
    """n noisy versions of drawn pictures.

    Args:
        row: (n,) int64, which prompt the picture was drawn from.
        x0: (n, c, h, w) its clean latents. x: at time t. t: (n,).
    """

    row: Tensor
    x0: Tensor
    x: Tensor
    t: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: slice) -> Noised:
        return Noised(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def cat(parts: Sequence[Noised]) -> Noised:
        return Noised(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Noised)})


@torch.no_grad()
def draw(
    host: Denoiser,
    prompts: Sequence[str],
    n: int,
    generator: torch.Generator,
    *,
    steps: int,
    guidance: float,
    negative: str = "",
    batch: int = 32,
) -> Drawn:
    """n pictures of prompts taken in turn, away from the negative prompt; they never become pixels.

    Cost: steps x 2 forwards a picture (1 where guidance <= 1).
    """
    rows = [i % len(prompts) for i in range(n)]
    seeds = torch.randint(2**31, (n,), generator=generator).tolist()
    found = []
    for part in batches(range(n), batch):
        texts, starts = [prompts[rows[i]] for i in part], [seeds[i] for i in part]
        walk = host.walk(texts, starts, negative=negative, steps=steps, guidance=guidance)
        for _ in walk:
            pass
        found.append(walk.x)  # type: ignore[attr-defined]
    return Drawn(row=torch.tensor(rows), x0=torch.cat(found).float())


def noised(host: Denoiser, pictures: Drawn, n: int, generator: torch.Generator) -> Noised:
    """n of the pictures, drawn at random without repetition while they last, at random training times."""
    turns = [torch.randperm(len(pictures), generator=generator) for _ in range(-(-n // len(pictures)))]
    chosen = torch.cat(turns)[:n]
    x0 = pictures.x0[chosen]
    t = host.times(n, generator).to(x0.device)
    alpha, sigma = host.noise(t)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    return Noised(row=pictures.row[chosen], x0=x0, x=alpha * x0 + sigma * noise, t=t)
