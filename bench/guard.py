"""What stands around an edit: seconds of fingerprint and guard on the tensors of Stable Diffusion 1.4, one thread.

Run: OMP_NUM_THREADS=1 python bench/guard.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from palimpsest.core.fingerprint import fingerprint, hook_count, quick_state

PARAMETERS = 859_520_964 + 123_060_480 + 83_653_863  # U-Net, text encoder, autoencoder
WIDTH = 1280


def model() -> nn.Module:
    """As many float32 numbers in matrices of the U-Net's width."""
    rows = PARAMETERS // WIDTH
    part = torch.randn(1 << 22)
    root = nn.Module()
    for i, start in enumerate(range(0, rows, 3 * WIDTH)):
        n = min(3 * WIDTH, rows - start)
        value = part.repeat(-(-n * WIDTH // len(part)))[: n * WIDTH].view(n, WIDTH)
        root.register_parameter(f"w{i}", nn.Parameter(value, requires_grad=False))
    return root


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    root = model()
    size = sum(p.numel() * p.element_size() for p in root.parameters())
    one, hooks, whole = (seconds(lambda f=f: f(root)) for f in (quick_state, hook_count, fingerprint))
    print(f"{size / 2**30:.1f} GiB: one guard pass {one:.2f} s, hooks {hooks:.3f} s, sha256 {whole:.1f} s (once)")
    print(f"around an edit: {2 * one + 2 * hooks:.2f} s (one pass before, shared with the base's hash, and one after)")


if __name__ == "__main__":
    main()
