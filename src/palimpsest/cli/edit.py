"""palimpsest edit, and every other verb whose systems change pictures."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional, arg

from palimpsest.cli import options
from palimpsest.cli.options import Loading
from palimpsest.cli.terminal import tell
from palimpsest.core import catalog
from palimpsest.core.verb import Verb


@dataclass(frozen=True, kw_only=True)
class Editing(Loading):
    verb: ClassVar[str]

    photos: Annotated[Positional[str], arg(metavar="PICTURES")]
    """A folder, a file, or a glob in quotes."""
    to: options.Words = ""
    """What the pictures shall show."""
    instead: options.Words = ""
    """What that takes the place of, in the captions."""
    remove: options.Words = ""
    """What the pictures shall lose."""
    asked: Annotated[str, arg(metavar="SENTENCE")] = ""
    """What each picture shall show as a whole sentence; {said} is its caption, {name} its file's name."""
    said: Annotated[str, arg(metavar="FILE|SENTENCE")] = ""
    """What the pictures show: a .csv or .jsonl file with the columns file_name and caption, or a sentence for all.
    Where not given: a .txt beside the picture, else metadata.csv or .jsonl beside the pictures, else the reader of the
    drawn world that the model was trained on."""
    model: options.Model = "tiny/portraits"
    """A diffusers folder, a .safetensors checkpoint, a repository of the hub, or one of the shipped tiny models."""
    method: options.Name = ""
    """The system, e.g. edit_friendly or diffedit; the default is named when used. Its own options follow as --name
    value, or as --method.name value where the command has one of that name."""
    masks: options.OptionalFolder = None
    """A folder of masks that are called like the pictures; white may change, any size."""
    reference: Annotated[Path | None, arg(metavar="FILE|FOLDER")] = None
    """A picture whose style all edits take, or a folder of them that are called like the pictures; for systems that
    read one (style_id)."""
    patch: options.OptionalPatch = None
    """A patch of the model, or another program's LoRA or embedding, under which the edit is drawn."""
    scale: options.Strength = 1.0
    """Strength of the patch."""
    size: options.Pixels = None
    """Side of the square that pictures are worked on at; the model's own where not given."""
    judge: Annotated[tuple[str, ...], arg(metavar="JUDGE ...")] = ()
    """Who reads the pictures for the receipt, beside the reader of the model's drawn world: folders of image
    classifiers or of CLIP models (which tell --to from --instead), or nudenet."""
    truth: options.OptionalFolder = None
    """A folder with the pictures as they should become, by the same names, where somebody can draw them."""
    out: options.Folder = Path("edited")
    """Folder for the pictures, the regions that may differ, edits.csv and the receipt. Finished pictures in it are
    kept."""
    seed: options.Count = 0
    """Of everything random."""
    no_mark: bool = False
    """Write files that do not say that a model made a part of them."""
    skip_unreadable: bool = False
    """Pass over pictures that cannot be read or written, and list them, instead of stopping."""
    again: bool = False
    """Go on in a folder that holds edits of other settings; its pictures are edited anew."""
    dry_run: bool = False
    """Edit one picture without writing it; print what would be done and the minutes; then stop."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.progress import bars
        from palimpsest.run import editing, edits
        from palimpsest.run.wording import Wanted

        entry = catalog.find(self.method or catalog.verbs()[self.verb].default, self.verb)
        wanted = Wanted(to=self.to, instead=self.instead, remove=self.remove, asked=self.asked)
        method = self._method(entry, rest)
        if not self.method:
            tell(f"No --method given: using {entry.card.name} ({entry.id}), the default.")
        work = editing.Editing(
            host=self.load(self.model), source=self.photos, wanted=wanted, method=method, said=self.said,
            masks=self.masks, reference=self.reference, patch=self.patch, scale=self.scale, size=self.size,
            seed=self.seed, mark=not self.no_mark, skip_unreadable=self.skip_unreadable, judges=self.judge,
            truth=self.truth,
        )  # fmt: skip
        if self.dry_run:
            tell(work.forecast())
            tell(f"{entry.card.name} ({entry.id}): {method}")
            return 0
        with bars() as progress:
            done = work.run(self.out, again=self.again, command=command, progress=progress)
        tell(done.summary())
        if self.no_mark:
            tell("The files do not say that a model made a part of them (--no-mark).")
        tell(f"pictures {done.out / edits.IMAGES}\ntable    {done.out / edits.TABLE}")
        options.say(done.receipt)
        return 0

    def _method(self, entry: catalog.Entry, rest: list[str]) -> Any:
        """The system with what its own options say."""
        args = [text.replace("--method.", "--", 1) for text in rest]
        return tyro.cli(catalog.load(entry.id), prog=f"palimpsest {self.verb} ... --method {entry.id}", args=args)


def command_of(name: str, verb: Verb) -> type:
    """The command of a verb whose systems change pictures."""
    examples = "\n".join(f"  {line}" for line in verb.examples)
    made = make_dataclass(
        name.title(), [("out", options.Folder, Path(verb.out))], bases=(Editing,), frozen=True, kw_only=True
    )
    made.verb, made.__doc__ = name, f"{verb.does}\n\nExamples:\n{examples}"
    return made
