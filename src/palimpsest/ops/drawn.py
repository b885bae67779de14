"""Pictures that a model draws itself, as clean latents, and their noisy versions: training data without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.sampling import Sampling
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
        walk = host.walk(texts, starts, Sampling(steps=steps, guidance=guidance, negative=negative))
        for _ in walk:
            pass
        found.append(walk.x)
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


def noise_errors(
    host: Denoiser,
    x0: Tensor,
    cond: Cond,
    rows: Tensor,
    shares: Sequence[float],
    generator: torch.Generator,
    *,
    batch: int = 32,
) -> Tensor:
    """(n, k) how badly the noise in each of n pictures x0 (n, c, h, w) is predicted under each of its k prompts.

    The mean of |noise predicted - noise|^2 over a few fixed times, with one noise for all pictures and prompts, so that
    errors differ by picture and prompt alone. Units of noise for networks of every prediction: errors are
    compared between pictures, not trained on.

    Args:
        cond: the prompts. rows: (n, k) which of them are said of each picture.
        shares: quantiles of the training times at which errors are read.

    Cost: n x k x shares forwards.
    """
    times = host.times(1000, generator).sort().values
    noise = torch.randn(x0[:1].shape, generator=generator).to(x0.device)
    total = torch.zeros(rows.shape)
    for share in shares:
        t = times[int(share * len(times))]
        alpha, sigma = host.noise(t[None])
        for k in range(rows.shape[1]):
            for i in range(0, len(x0), batch):
                part = slice(i, i + batch)
                clean, said = x0[part], cond[rows[part, k]]
                predicted = host.denoise(alpha * clean + sigma * noise, t.expand(len(said)), said)
                error = alpha / sigma * (predicted - clean)
                total[part, k] += error.square().mean((1, 2, 3)).cpu() / len(shares)
    return total
