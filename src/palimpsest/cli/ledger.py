"""palimpsest ledger"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from palimpsest.cli import options
from palimpsest.cli.options import Loading, Looking, Working, refuse_overwriting, say
from palimpsest.cli.terminal import tell
from palimpsest.cli.verb import WRITTEN

BookFolder = Annotated[Path, arg(metavar="BOOK")]
Edit = Annotated[str, arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Named:
    book: Positional[BookFolder]
    """The ledger's folder."""
    name: Positional[Edit]
    """The edit."""


@dataclass(frozen=True, kw_only=True)
class New(Loading):
    """Make an empty ledger of a model."""

    book: Positional[BookFolder]
    """A folder that holds no ledger yet."""
    model: options.Model
    """The model that all its edits are of."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import BOOK_FILE, Ledger

        made = Ledger.new(self.book, self.load(self.model)).book
        tell(f"{self.book / BOOK_FILE}\nof {made.model}, {made.base[:12]}")


@dataclass(frozen=True, kw_only=True)
class Add(Loading):
    """Add an edit, switched on."""

    book: Positional[BookFolder]
    """The ledger's folder."""
    edit: Annotated[Positional[Path], arg(metavar="PATCH")]
    """A patch or its folder, or another program's LoRA or embedding."""
    name: options.Name
    """What the ledger calls it."""
    scale: options.Strength = 1.0
    """Its change counts this many times."""
    note: options.Words = ""
    """Your words about it."""
    model: options.Model = ""
    """The ledger's model, where it lies elsewhere now; it is loaded only for LoRAs and for edits of edited models."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        ledger, host = Ledger(self.book), self.load(self.model) if self.model else None
        entry = ledger.add(self.edit, self.name, scale=self.scale, note=self.note, host=host)
        under = ", ".join(u.name for u in entry.on_top_of)
        tell(f"{entry.name}: {entry.sha256[:12]}" + (f", made on top of {under}" if under else ""))


@dataclass(frozen=True, kw_only=True)
class List:
    """Say what edits there are."""

    book: Positional[BookFolder]
    """The ledger's folder."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        book = Ledger(self.book).book
        tell(f"{len(book.entries)} edits of {book.model}, {book.base[:12]}")
        width = max((len(e.name) for e in book.entries), default=0)
        for entry in book.entries:
            on = "on " if entry.on else "off"
            tail = [_about(entry.request), entry.note, f"STALE: {why}" if (why := book.stale(entry)) else ""]
            told = "  ".join(filter(None, tail)).replace("\n", " ")
            tell(f"{entry.name:{width}}  {on}  x {entry.scale:<4g}  {entry.sha256[:12]}  {told}".rstrip())


@dataclass(frozen=True, kw_only=True)
class On(Named):
    """Switch an edit on."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        Ledger(self.book).on(self.name)


@dataclass(frozen=True, kw_only=True)
class Off(Named):
    """Switch an edit off; it stays in the ledger."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        Ledger(self.book).off(self.name)


@dataclass(frozen=True, kw_only=True)
class Scale(Named):
    """Let an edit's change count several times, in part, or the other way round."""

    factor: Annotated[Positional[float], arg(metavar="X")]
    """How many times; 1 is as it was made."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        Ledger(self.book).scale(self.name, self.factor)


@dataclass(frozen=True, kw_only=True)
class Drop(Named):
    """Take an edit out, and delete the ledger's copy of its patch."""

    force: bool = False
    """Also where others were made on top of it; they are marked as stale."""
    remake: bool = False
    """Make edits that were made on top of it anew without it, by the system, request and seed that they name."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        for entry in Ledger(self.book).drop(self.name, force=self.force, remake=self.remake):
            tell(f"{entry.name}: made anew, {entry.sha256[:12]}")


@dataclass(frozen=True, kw_only=True)
class VerifyBook:
    """Read the book's chain and every patch, and say whether they are what was written."""

    book: Positional[BookFolder]
    """The ledger's folder."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        book = Ledger(self.book).verify()
        tell(f"whole: {len(book.chain)} lines, {len(book.entries)} edits")


@dataclass(frozen=True, kw_only=True)
class Check(Loading, Looking, Working):
    """Say how edits stand in each other's way, and measure what each keeps when all that are on are merged."""

    book: Positional[BookFolder]
    """The ledger's folder."""
    plan: bool = False
    """Compare weights alone; draw nothing."""
    out: options.Folder = Path("checked")
    """Folder for the patch of all and its receipt."""
    overwrite: bool = False
    """Replace results that are in the out folder already."""
    model: options.Model = ""
    """The ledger's model, where it lies elsewhere now."""

    def carry_out(self, command: str) -> None:
        from palimpsest.progress import bars
        from palimpsest.run.ledger import Ledger

        if not self.plan:
            refuse_overwriting(self.out, WRITTEN, self.overwrite)
        ledger = Ledger(self.book)
        host = self.load(self.model or ledger.book.model)
        _tell_stale(ledger)
        pairs = ledger.against(host)
        for pair in pairs:
            weights = pair.weights
            tell(
                f"{pair.first}, {pair.second}: cosine {weights.cosine:.3f}; of the largest changes of either "
                f"{weights.shared:.1%} are shared, and of these {weights.opposed:.1%} have opposite signs"
            )
        if not pairs:
            tell("Fewer than two changes of weights are on; none stands in another's way.")
        if self.plan:
            return
        with bars() as progress:
            done = ledger.check(
                host, look=self.look(), out=self.out, workers=self.workers, ray=self.ray, command=command,
                progress=progress,
            )  # fmt: skip
        tell(f"patch    {done.patch_path}")
        if done.receipt is None:
            tell("No edit says what it is about, so nothing was drawn.")
        else:
            say(done.receipt)


@dataclass(frozen=True, kw_only=True)
class Write(Loading):
    """Write all edits that are on as one patch or LoRA."""

    book: Positional[BookFolder]
    """The ledger's folder."""
    format: Literal["patch", "peft", "kohya"] = "patch"
    """As `palimpsest export` writes them; patch: one of our own."""
    out: options.Folder = Path("published")
    """Folder to write to."""
    overwrite: bool = False
    """Replace what is in the out folder already."""
    model: options.Model = ""
    """The ledger's model, where it lies elsewhere now."""

    def carry_out(self, command: str) -> None:
        from palimpsest.run.ledger import Ledger

        refuse_overwriting(self.out, [p.name for p in self.out.glob("*.safetensors")], self.overwrite)
        ledger = Ledger(self.book)
        _tell_stale(ledger)
        host = self.load(self.model or ledger.book.model) if self.model or self.format != "patch" else None
        tell(str(ledger.write(self.out, format=self.format, host=host)))


Does = (
    Annotated[New, subcommand("new")]
    | Annotated[Add, subcommand("add")]
    | Annotated[List, subcommand("list")]
    | Annotated[On, subcommand("on")]
    | Annotated[Off, subcommand("off")]
    | Annotated[Scale, subcommand("scale")]
    | Annotated[Drop, subcommand("drop")]
    | Annotated[VerifyBook, subcommand("verify")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Write, subcommand("write")]
)


@dataclass(frozen=True, kw_only=True)
class LedgerCommand:
    """Keep edits of one model apart in a folder, so that any of them can be taken out exactly.

    Examples:
      palimpsest ledger new book --model tiny/sd
      palimpsest ledger add book no-star/patch.safetensors --name no-star
      palimpsest ledger off book no-star
      palimpsest ledger check book --plan
      palimpsest ledger write book --format peft --out published
    """

    does: OmitSubcommandPrefixes[Does]

    def run(self, rest: list[str], command: str) -> int:
        self.does.carry_out(command)
        return 0


def _tell_stale(ledger: Any) -> None:
    book = ledger.book
    for entry in book.live():
        if why := book.stale(entry):
            tell(f"{entry.name} is stale: {why}.")


def _about(request: Any) -> str:
    """The names of what an edit is about; "" where its request is not one that this version reads."""
    from palimpsest.core.concept import Request
    from palimpsest.core.errors import PalimpsestError

    try:
        return "" if request is None else ", ".join(c.name for c in Request.from_plain(request).target)
    except PalimpsestError:
        return ""
