"""palimpsest erase"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from palimpsest.cli.options import Loading, Looking, look, method_of, say
from palimpsest.core import catalog


@dataclass(frozen=True, kw_only=True)
class Erase(Loading, Looking):
    """Make a text-to-image model unable to draw a concept. Writes patch.safetensors, receipt.json and receipt.html."""

    target: Positional[str]
    """The concept, several with commas between, or a CSV file with the columns name, kind, prompts and toward."""
    model: str = "tiny/sd"
    """A diffusers folder, a single .safetensors checkpoint, or one of the shipped tiny models."""
    method: str = ""
    """The system, e.g. rece, esd, sld, uce; the default is named when used. Its own options follow as --name value."""
    keep: str = ""
    """What must stay, with commas between or a CSV file; the model's own neighbours of the target where not given."""
    toward: str = ""
    """What the target becomes; nothing (the empty prompt) where not given."""
    kind: Literal["identity", "object", "class", "attribute", "style", "domain"] = "object"
    """What sort of thing the target is; drawn worlds know it themselves."""
    out: Path = Path("erased")
    """Folder for the results."""
    oracle: str = ""
    """A model that never saw the target, to compare with."""
    seed: int = 0
    """Of everything random in the method."""
    resume: bool = False
    """Go on from the checkpoint and the pictures in the out folder."""
    dry_run: bool = False
    """Print what would be done, drawn and shown, and the minutes; then stop."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.progress import bars

        entry = catalog.find(self.method or run.DEFAULT_ERASER, "erase")
        method = method_of(entry, rest)
        if not self.method:
            print(f"No --method given: using {entry.card.name} ({entry.id}), the default.")
        host = run.load(self.model, device=self.device, dtype=self.dtype)
        request = run.request(host, self.target, keep=self.keep, toward=self.toward, kind=self.kind)
        if not self.keep:
            print(f"Keeping the model's own neighbours: {', '.join(c.name for c in request.keep)}.")
        if self.dry_run:
            print(f"{entry.card.name} ({entry.id}): {method}")
            print(run.forecast(host, request, look=look(self), oracle=bool(self.oracle)))
            return 0
        with bars() as progress:
            done = run.erase(
                host, request, method=method, out=self.out, seed=self.seed, resume=self.resume, look=look(self),
                oracle=run.load(self.oracle, device=self.device, dtype=self.dtype) if self.oracle else None,
                command=command, progress=progress,
            )  # fmt: skip
        say(done.receipt)
        print(f"patch    {done.patch_path}")
        return 0
