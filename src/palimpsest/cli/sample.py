"""palimpsest sample"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from palimpsest.cli.options import Loading


@dataclass(frozen=True, kw_only=True)
class Sample(Loading):
    """Draw pictures from a model, with or without a patch."""

    model: Positional[str]
    """The model."""
    prompt: Positional[str]
    """What to draw."""
    patch: Path | None = None
    """A patch to apply while drawing."""
    scale: float = 1.0
    """Strength of the patch."""
    force: bool = False
    """Apply a patch that was made for another model."""
    negative: str = ""
    """What to keep away from."""
    seed: int = 0
    """Of the first picture; the next ones count up."""
    n: int = 1
    """How many pictures, side by side."""
    steps: int | None = None
    """Sampling steps."""
    guidance: float | None = None
    """Scale of classifier-free guidance."""
    out: Path = Path("sample.png")
    """A PNG file."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run

        host = run.load(self.model, device=self.device, dtype=self.dtype)
        run.sample(
            host, self.prompt, patch=self.patch, scale=self.scale, force=self.force, negative=self.negative,
            seed=self.seed, n=self.n, steps=self.steps, guidance=self.guidance, out=self.out,
        )  # fmt: skip
        print(self.out)
        return 0
