"""palimpsest import"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from palimpsest.cli import options
from palimpsest.cli.options import Loading, refuse_overwriting
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest

PATCH = "patch.safetensors"


@dataclass(frozen=True, kw_only=True)
class Import(Loading):
    """Make a patch of a LoRA or an embedding of another program, to be audited, scaled, merged and exported.

    Examples:
      palimpsest import pixel-art.safetensors --model sdxl-base --out pixel
      palimpsest import my-adapter --model tiny/sd --out mine
    """

    file: Positional[options.File]
    """The file; or the folder that peft or diffusers wrote."""
    model: options.Model
    """The model that it is for."""
    out: options.Folder = Path("imported")
    """Folder for patch.safetensors."""
    overwrite: bool = False
    """Replace the patch that is in the out folder already."""
    allow_unmatched: bool = False
    """Leave out tensors that have no place in the model, and list them in the patch; else they are an error."""
    name: options.Name = ""
    """What the patch says that it was made of, instead of the file's name."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.export import read_patch
        from palimpsest.export.read import is_own_file, weights_of

        refuse_overwriting(self.out, [PATCH], self.overwrite)
        path = self.file / PATCH if (self.file / PATCH).is_file() else weights_of(self.file)
        if is_own_file(path):
            raise BadRequest(f"{path} is a patch already; copy it as it is.")
        host = self.load(self.model)
        patch = read_patch(path, host, allow_unmatched=self.allow_unmatched)
        # A folder's one file is always called alike; the folder says what it is.
        called = self.name or (self.file.resolve().name if path != self.file else path.name)
        patch = replace(patch, provenance={**patch.provenance, "file": called})
        tell(str(patch.save(self.out / PATCH)))
        for line in told(patch, host):
            tell(line)
        return 0


def told(patch: Any, host: Any) -> list[str]:
    """What was read, in sentences."""
    from palimpsest.export.summary import parts

    made, lines = patch.provenance, []
    if forms := made.get("forms"):
        ranks = made.get("ranks")
        span = (
            "" if not ranks else f", rank {ranks[0]}" if ranks[0] == ranks[1] else f", ranks {ranks[0]} to {ranks[1]}"
        )
        lines.append("read     " + ", ".join(f"{n} x {form}" for form, n in forms.items()) + span)
    for part in parts(patch, host):
        share = f"{part.changed} of {part.of} layers" + (f" and {part.other} other tensors" if part.other else "")
        size, where = part.largest
        lines.append(
            f"{part.name:8} {share}; the change is {part.relative:.1%} of the weights it changes, at most {size:.1%} "
            f"({where})"
        )
    if patch.words:
        lines.append("words    " + ", ".join(sorted(patch.words)))
    if left := made.get("unmatched"):
        lines.append(
            f"left out {len(left)} tensors, listed in the patch: {', '.join(left[:3])}{', ...' * (len(left) > 3)}"
        )
    return lines
