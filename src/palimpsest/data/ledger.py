"""The book of a ledger: which edits of one model are kept, and a chain of lines that says how it came so."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

from palimpsest.core import declared
from palimpsest.core.declared import MOST_BYTES, Matching, Sha256, Within, shown
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError
from palimpsest.core.files import write_text

SCHEMA = "palimpsest/ledger/1"
LONGEST_NAME, LONGEST_NOTE, MOST_ENTRIES = 64, 2000, 1000


@dataclass(frozen=True, kw_only=True)
class Under:
    """An edit that another was made on top of, as it stood in the book then."""

    name: str
    sha256: Sha256
    scale: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An edit in a ledger.

    Args:
        name: what the ledger calls it. sha256: of the patch.
        made_on: fingerprint of the model that the patch was made for.
        on_top_of: the edits that were in that model; () where it is the ledger's own.
        scale: its change counts this many times. on: whether it counts at all.
        request: what it answers, as its patch says; None where that says nothing.
        note: the user's words.

    Raises:
        BadRequest: a name that cannot be typed on one line, a scale that is no number, a note that is too long.
    """

    name: str
    sha256: Sha256
    made_on: Sha256
    on_top_of: tuple[Under, ...] = ()
    scale: float = 1.0
    on: bool = True
    request: dict[str, Any] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= LONGEST_NAME or not self.name.isprintable() or self.name != self.name.strip():
            raise BadRequest(
                f"{shown(self.name, 80)} cannot be the name of an edit: 1 to {LONGEST_NAME} letters that can be seen, "
                "without spaces around them."
            )
        if len(self.note) > LONGEST_NOTE:
            raise BadRequest(f"A note of {len(self.note):,} letters; it may have {LONGEST_NOTE:,}.")
        if not math.isfinite(self.scale):
            raise BadRequest(f"The scale of {shown(self.name, 80)} is {self.scale}; it is to be a number.")


class _Chained(TypedDict):
    did: Literal["new", "add", "on", "off", "scale", "drop"]
    before: Annotated[str, Matching(r"[0-9a-f]{64}|", "a sha256, or nothing in the first line")]
    sha256: Sha256  # of the line without this field


class Line(_Chained, total=False):
    """One change of a book; which fields stand in it depends on what was done."""

    base: Sha256
    model: str
    entry: Entry
    name: str
    scale: float


class Written(TypedDict):
    """The file."""

    schema: Literal["palimpsest/ledger/1"]
    base: Sha256
    model: Annotated[str, Within(most=4096)]
    entries: Annotated[list[Entry], Within(most=MOST_ENTRIES)]
    chain: Annotated[list[Line], Within(least=1)]


@dataclass(frozen=True, kw_only=True)
class Book:
    """What a ledger's file says. Every change gives a new book whose chain is one line longer.

    Args:
        base: fingerprint of the model that all edits are of. model: its name or place.
        entries: in the order in which they were added.
        chain: every change since the book was new.
    """

    base: str
    model: str
    entries: tuple[Entry, ...] = ()
    chain: tuple[Line, ...] = ()

    @staticmethod
    def new(base: str, model: str) -> Book:
        """A book without entries."""
        return Book(base="", model="")._after(_line("", {"did": "new", "base": base, "model": model}))

    @staticmethod
    def read(path: Path) -> Book:
        """The book in a file.

        Raises:
            Damaged: no such file, not a book, or one that was altered; the message names the line of the chain.
        """
        held = declared.read(path, Written, "a ledger")
        book = Book(base="", model="")
        for n, line in enumerate(held["chain"], 1):
            if line["sha256"] != _hash(line):
                raise Damaged(f"{path} was altered: line {n} of its chain is not what was written. {_COPY}")
            if line["before"] != (book.chain[-1]["sha256"] if book.chain else ""):
                raise Damaged(f"{path} was altered: line {n} of its chain does not follow the line before it. {_COPY}")
            try:
                book = book._after(line)
            except (PalimpsestError, KeyError) as e:
                raise Damaged(f"{path} was altered: line {n} of its chain cannot be: {e} {_COPY}") from e
        if (book.base, book.model, book.entries) != (held["base"], held["model"], tuple(held["entries"])):
            odd = [e.name for e in held["entries"] if e not in book.entries] or ["what it says of its model or entries"]
            raise Damaged(
                f"{path} was altered: {shown(odd[0], 80)} is not what the {len(book.chain)} lines of its chain lead "
                f"to. {_COPY}"
            )
        return book

    def write(self, path: Path) -> Path:
        """Writes the book; a kill leaves the old one or this.

        Raises:
            BadRequest: it holds what a file cannot say, or too much.
        """
        chain = [_plain(line) for line in self.chain]
        held = {"schema": SCHEMA, "base": self.base, "model": self.model, "chain": chain}
        text = json.dumps({**held, "entries": [asdict(e) for e in self.entries]}, indent=1) + "\n"
        try:
            declared.parsed(text, Written, "It")
        except Damaged as e:
            raise BadRequest(f"The ledger cannot be written: {e}") from e
        if len(text) > MOST_BYTES:
            raise BadRequest(f"The ledger would be longer than {MOST_BYTES:,} bytes; begin a new one.")
        return write_text(path, text)

    # -- reading -----------------------------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        """The entry of this name; capitals make no difference.

        Raises:
            BadRequest: there is none.
        """
        for entry in self.entries:
            if entry.name.casefold() == name.casefold():
                return entry
        known = ", ".join(e.name for e in self.entries) or "it has none yet"
        raise BadRequest(f"The ledger has no edit {shown(name, 80)}; its edits: {known}.")

    def live(self) -> tuple[Entry, ...]:
        """What is switched on, in the order of the patches' hashes: the order in which changes are summed."""
        return tuple(sorted((e for e in self.entries if e.on), key=lambda e: e.sha256))

    def stale(self, entry: Entry) -> str:
        """Why an edit no longer stands on what it was made on; "" where it does."""
        now = {e.sha256: e for e in self.entries}
        for under in entry.on_top_of:
            found = now.get(under.sha256)
            if found is None:
                return f"made on top of {under.name}, which is dropped"
            if not found.on:
                return f"made on top of {found.name}, which is off"
            if found.scale != under.scale:
                return f"made on top of {found.name} at {under.scale:g}, which is at {found.scale:g}"
        return ""

    # -- changes -----------------------------------------------------------------------------------------

    def added(self, entry: Entry) -> Book:
        return self._then({"did": "add", "entry": entry})

    def switched(self, name: str, on: bool) -> Book:
        entry = self.entry(name)
        return self if entry.on == on else self._then({"did": "on" if on else "off", "name": entry.name})

    def scaled(self, name: str, scale: float) -> Book:
        entry = replace(self.entry(name), scale=float(scale))
        return self if entry in self.entries else self._then({"did": "scale", "name": entry.name, "scale": entry.scale})

    def dropped(self, name: str, *, force: bool = False) -> Book:
        """Without an entry.

        Raises:
            BadRequest: other edits were made on top of it (`force` drops it all the same; they are stale from then on).
        """
        entry = self.entry(name)
        above = [e.name for e in self.entries if any(u.sha256 == entry.sha256 for u in e.on_top_of)]
        if above and not force:
            raise BadRequest(
                f"{', '.join(above)} {'were' if above[1:] else 'was'} made on top of {entry.name}. Drop that first, "
                "switch this one off instead, let it be made anew (--remake), or force it: what stands on it is then "
                "marked as stale."
            )
        return self._then({"did": "drop", "name": entry.name})

    def _then(self, change: Mapping[str, Any]) -> Book:
        return self._after(_line(self.chain[-1]["sha256"], change))

    def _after(self, line: Line) -> Book:
        """The book after a line that is added to its chain.

        Raises:
            BadRequest, KeyError: the line cannot stand here.
        """
        said = cast("Mapping[str, Any]", line)  # which fields it has depends on what was done
        did, chain = line["did"], (*self.chain, line)
        if (did == "new") == bool(self.chain):
            raise BadRequest("A chain begins with the line `new`, and has one.")
        if did == "new":
            return Book(base=said["base"], model=said["model"], chain=chain)
        if did == "add":
            self._takes(said["entry"])
            return replace(self, entries=(*self.entries, said["entry"]), chain=chain)
        old = self.entry(said["name"])
        if did == "drop":
            return replace(self, entries=tuple(e for e in self.entries if e is not old), chain=chain)
        new = replace(old, scale=said["scale"]) if did == "scale" else replace(old, on=did == "on")
        return replace(self, entries=tuple(new if e is old else e for e in self.entries), chain=chain)

    def _takes(self, entry: Entry) -> None:
        """Raises BadRequest where an entry is one that the book has."""
        for other in self.entries:
            if other.name.casefold() == entry.name.casefold():
                raise BadRequest(f"The ledger has an edit {other.name} already; give this one another name.")
            if other.sha256 == entry.sha256:
                raise BadRequest(f"The same patch is in the ledger as {other.name}; scale that one instead.")
        if len(self.entries) >= MOST_ENTRIES:
            raise BadRequest(f"The ledger has {MOST_ENTRIES:,} edits, the most that one may have.")


_COPY = "Get a fresh copy; `patches` beside it holds the edits themselves."


def _line(before: str, change: Mapping[str, Any]) -> Line:
    line: Any = {**change, "before": before}
    line["sha256"] = _hash(line)
    return line


def _hash(line: Mapping[str, Any]) -> str:
    bare = {key: value for key, value in _plain(line).items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _plain(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: asdict(value) if isinstance(value, Entry) else value for key, value in line.items()}
