"""Which precision this machine computes in faster: without units for it, bfloat16 is many times slower."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

SIDE = 512
GAIN = 1.2  # as many times faster must bfloat16 be to pay for its rounding


class Measured(NamedTuple):
    """The faster precision, and the milliseconds that a product of two 512 x 512 matrices takes in either."""

    dtype: torch.dtype
    float32: float
    bfloat16: float

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"computing in {name}: a product takes {self.float32:.2f} ms in float32, {self.bfloat16:.2f} in bfloat16"


@cache
def measured() -> Measured:
    """One measurement a process. Cost: a few milliseconds, up to half a second without units for bfloat16."""
    taken = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(6):  # the first of each also wakes threads and caches
        for dtype in taken:
            one = torch.ones(SIDE, SIDE, dtype=dtype)
            start = time.perf_counter()
            torch.matmul(one, one)
            taken[dtype] = min(taken[dtype], 1000 * (time.perf_counter() - start))
    whole, half = taken[torch.float32], taken[torch.bfloat16]
    return Measured(torch.bfloat16 if GAIN * half < whole else torch.float32, whole, half)
