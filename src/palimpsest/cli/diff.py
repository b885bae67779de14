"""palimpsest diff"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from palimpsest.cli import options
from palimpsest.cli.options import refuse_overwriting
from palimpsest.cli.terminal import tell

PATCH = "patch.safetensors"


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Write what was changed between two models of one architecture as a patch, without loading either.

    Folders and checkpoints in one file are read a block at a time, whatever their precision and shards. The patch can
    be audited, scaled, merged and exported.

    Examples:
      palimpsest diff their-base my-finetune --out change
      palimpsest diff base.safetensors tuned.safetensors --out change
    """

    base: Annotated[Positional[str], arg(metavar="BASE")]
    """The untouched model."""
    edited: Annotated[Positional[str], arg(metavar="EDITED")]
    """The edited one."""
    out: options.Folder = Path("change")
    """Folder for the patch."""
    overwrite: bool = False
    """Replace a patch that is in the out folder already."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.core.change import Change, diff
        from palimpsest.hosts.load import stored

        refuse_overwriting(self.out, [PATCH], self.overwrite)
        before, after = stored(self.base), stored(self.edited)
        Change(before=before, after=after, name=self.edited)  # models of other architectures are told at once
        path = self.out / PATCH
        patch = diff(before, after, name=self.edited, out=path)
        changed = f"{len(patch.deltas)} of {len(before.names())} tensors changed"
        tell(f"patch    {path}")
        tell(f"{changed}; {path.stat().st_size / 1e6:.1f} MB; base {patch.base[:12]}.")
        return 0
