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
    dry_run: bool = False
    """Say how much would be read, then stop."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.core.change import Change, diff
        from palimpsest.core.stored import bytes_of
        from palimpsest.core.trace import Trace
        from palimpsest.hosts.load import stored
        from palimpsest.progress import bars

        refuse_overwriting(self.out, [PATCH], self.overwrite)
        before, after = stored(self.base), stored(self.edited)
        Change(before=before, after=after, name=self.edited)  # models of other architectures are told at once
        path = self.out / PATCH
        own, size = (bytes_of(m) for m in (before, after))
        # Once for the fingerprint, once to compare, and at most twice to write, where few of a tensor's numbers moved.
        tell(
            f"{len(before.names())} tensors of {own / 1e9:.2g} and {size / 1e9:.2g} GB; {(2 * own + size) / 1e9:.2g} "
            f"to {(4 * own + 3 * size) / 1e9:.2g} GB are read."
        )
        if self.dry_run:
            return 0
        with bars() as progress:
            patch = diff(before, after, name=self.edited, out=path, trace=Trace(progress=progress))
        changed = f"{len(patch.deltas)} of {len(before.names())} tensors changed"
        tell(f"patch    {path}")
        tell(f"{changed}; {path.stat().st_size / 1e6:.1f} MB; base {patch.base[:12]}.")
        return 0
