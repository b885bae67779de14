"""Draw a few pictures, with or without a patch; say what is installed."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.files import write_beside
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.export.read import read_patch


def sample(
    host: Any,
    prompt: str,
    *,
    out: str | Path,
    patch: Patch | str | Path | None = None,
    scale: float = 1.0,
    force: bool = False,
    negative: str = "",
    seed: int = 0,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
) -> Path:
    """Draws n pictures of a prompt side by side into a PNG, with or without a patch or an embedding's file."""
    from PIL import Image

    if n < 1:
        raise BadRequest(f"n is {n}; draw at least 1 picture.")
    held = read_patch(patch, host) if isinstance(patch, (str, Path)) else patch
    with held.scaled(scale).applied(host, force=force) if held is not None else nullcontext():
        images = host.sample(
            [prompt] * n,
            list(range(seed, seed + n)),
            Sampling(steps=steps, guidance=guidance, negative=negative),
        )
    strip = torch.cat(list(images), dim=2).permute(1, 2, 0)
    picture = Image.fromarray((strip * 255).round().to(torch.uint8).numpy())
    return write_beside(Path(out), lambda tmp: picture.save(tmp, format="PNG"))


def doctor() -> dict[str, str]:
    """Versions, devices and what is installed; plain text by name."""
    found = {**versions(), "threads": str(torch.get_num_threads()), "cuda": "no", "mps": "no"}
    if torch.cuda.is_available():
        found["cuda"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        found["mps"] = "yes"
    for extra in ("sklearn", "nudenet", "open_clip", "ray", "playwright"):
        found[extra] = "installed" if importlib.util.find_spec(extra) else "not installed (optional)"
    found["systems"] = str(len(catalog.entries()))
    from palimpsest import tiny

    models = [f"{shelf}/{name}" for shelf in ("tiny", *tiny.shelves()) for name in tiny.names(shelf)]
    found["models"] = ", ".join(dict.fromkeys(models)) or f"none; get the small ones by: {tiny.INSTALL}"
    return found
