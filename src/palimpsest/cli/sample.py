"""palimpsest sample"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.cli import options
from palimpsest.cli.options import Loading, refuse_overwriting
from palimpsest.cli.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Sample(Loading):
    """Draw pictures from a model, with or without a patch.

    Examples:
      palimpsest sample "a red star in sketch style" --model tiny/sd --patch no-star/patch.safetensors --out star.png
    """

    prompt: options.Prompt
    """What to draw."""
    model: options.Model = "tiny/sd"
    """A diffusers folder, a .safetensors checkpoint, a repository of the hub, or one of the shipped tiny models."""
    patch: options.OptionalPatch = None
    """A patch to apply while drawing, or another program's embedding or LoRA."""
    scale: options.Strength = 1.0
    """Strength of the patch."""
    force: bool = False
    """Apply a patch that was made for another model."""
    negative: options.Words = ""
    """What to keep away from."""
    seed: options.Count = 0
    """Of the first picture; the next ones count up."""
    n: options.Count = 1
    """How many pictures, side by side."""
    steps: options.Steps = None
    """Sampling steps."""
    guidance: options.Number = None
    """Scale of classifier-free guidance."""
    out: options.File = Path("sample.png")
    """A PNG file."""
    overwrite: bool = False
    """Replace the file if it is there already."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run

        refuse_overwriting(self.out.parent, [self.out.name], self.overwrite)
        host = self.load(self.model)
        run.sample(
            host, self.prompt, patch=self.patch, scale=self.scale, force=self.force, negative=self.negative,
            seed=self.seed, n=self.n, steps=self.steps, guidance=self.guidance, out=self.out,
        )  # fmt: skip
        tell(str(self.out))
        return 0
