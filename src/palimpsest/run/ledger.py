"""A ledger of edits: a folder that keeps edits of one model apart, so that any of them can be taken out exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from palimpsest.core import catalog, sealed
from palimpsest.core.change import built, stored
from palimpsest.core.errors import BadRequest, Damaged, WrongBase
from palimpsest.core.files import alone, refuse_pickle, write_beside
from palimpsest.core.fingerprint import holds
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress
from palimpsest.core.words import united
from palimpsest.data.ledger import Book, Entry, Under
from palimpsest.export.lora import export_patch
from palimpsest.export.read import is_own_file, read_patch
from palimpsest.hosts import load as hosts
from palimpsest.ops.interference import Interference, interference
from palimpsest.receipt.make import PATCH_FILE
from palimpsest.run.auditing import is_patch
from palimpsest.run.cases import Case
from palimpsest.run.do import Done, perform
from palimpsest.run.looking import Look
from palimpsest.run.merging import ingredients, merging
from palimpsest.run.remaking import remade
from palimpsest.run.sums import Sums

BOOK_FILE = "ledger.json"


@dataclass(frozen=True, kw_only=True)
class Against:
    """How two edits of a ledger stand in each other's way, by their weights."""

    first: str
    second: str
    weights: Interference


class Ledger:
    """Edits of one model in a folder: `ledger.json`, and each edit as `patches/<sha256>.safetensors`.

    What they make together is the sum of those that are switched on, in the order of their hashes, so that the order
    of adding changes no bit; to take one out is to sum without it.

    Args:
        folder: that `new` made.

    Raises:
        Damaged: there is none, or its book was altered.

    Example:
        >>> book = Ledger.new("book", load("tiny/sd"))                       # doctest: +SKIP
        >>> book.add("no-star", "no-star"), book.off("no-star")              # doctest: +SKIP
        >>> with book.compose().applied(host): ...                           # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.verify(patches=False)

    @staticmethod
    def new(folder: str | Path, host: Any, *, model: str = "") -> Ledger:
        """Makes an empty ledger.

        Args:
            host: the model that all its edits are of.
            model: how it is loaded again; where it was loaded from where not given.

        Raises:
            BadRequest: the folder holds a ledger already.
        """
        path = Path(folder) / BOOK_FILE
        if path.exists():
            raise BadRequest(f"{path} is there already; a new ledger needs another folder.")
        name = model or getattr(getattr(host, "origin", None), "model", "") or host.name
        Book.new(host.fingerprint(), name).write(path)
        return Ledger(folder)

    @property
    def book(self) -> Book:
        """The book as it is on disk now."""
        return Book.read(self.folder / BOOK_FILE)

    # -- changes -----------------------------------------------------------------------------------------

    def add(
        self, patch: Patch | str | Path, name: str, *, scale: float = 1.0, note: str = "", host: Any = None
    ) -> Entry:
        """Adds an edit, switched on.

        Args:
            patch: of the ledger's model, or of that model with all that is switched on; or a path of one, or of another
                program's LoRA or embedding.
            host: the ledger's model; loaded by its name where it is needed and not given.

        Raises:
            WrongBase: it was made for another model.
            BadRequest: the name or the patch is in the ledger already, or cannot be.
            Damaged: it is no patch, or does not fit the model.
        """
        with self._changing():
            return self._added(patch, name, scale, note, host)

    def _added(self, patch: Patch | str | Path, name: str, scale: float, note: str, host: Any) -> Entry:
        book, path = self.book, None
        if not isinstance(patch, Patch):
            path = _file(Path(patch))
            own = is_own_file(path)
            patch = Patch.open(path) if own else read_patch(path, host := self._model(host, book))
            path = path if own else None
        request = patch.provenance.get("request")
        entry = Entry(
            name=name,
            sha256=patch.sha256(),
            made_on=patch.base,
            scale=float(scale),
            request=dict(request) if isinstance(request, dict) else None,
            note=note,
        )
        _scalable(patch, entry.scale)
        book.added(entry)  # what the book cannot take is said before a model is loaded
        if patch.base != book.base:
            entry = replace(entry, on_top_of=self._under(book, patch, self._model(host, book)))
        elif host is not None:
            patch.fits(self._model(host, book))
        book = book.added(entry)
        if path is None:
            patch.save(self._place(entry))
        else:
            content = path
            write_beside(self._place(entry), lambda tmp: shutil.copyfile(content, tmp))
        self._write(book)
        return entry

    def on(self, name: str) -> None:
        """Switches an edit on."""
        with self._changing():
            self._write(self.book.switched(name, True))

    def off(self, name: str) -> None:
        """Switches an edit off; it stays in the ledger."""
        with self._changing():
            self._write(self.book.switched(name, False))

    def scale(self, name: str, scale: float) -> None:
        """Lets an edit's change count so many times.

        Raises:
            Unsupported: it acts while the model runs, and has a strength of its own.
        """
        with self._changing():
            book = self.book.scaled(name, scale)
            _scalable(self._patch(book.entry(name)), scale)
            self._write(book)

    def drop(self, name: str, *, force: bool = False, remake: bool = False, host: Any = None) -> tuple[Entry, ...]:
        """Takes an edit out, and deletes the ledger's copy of its patch; returns the entries that were made anew.

        Args:
            force: also where others were made on top of it; they are stale from then on.
            remake: edits that were made on top of it are made anew without it, by the system, parameters, request and
                seed that their patches name, and take the places of the old ones.
            host: the ledger's model, where something is made anew; loaded by its name where not given.

        Raises:
            BadRequest: others were made on top of it, or one of them cannot be made anew; nothing was changed then.
        """
        with self._changing():
            book = self.book
            entry = book.entry(name)
            made: list[tuple[Entry, Patch]] = []
            if remake and any(u.sha256 == entry.sha256 for e in book.entries for u in e.on_top_of):
                made = remade(book, entry, self._patch, self._model(host, book))
            changed = book
            names = {new.name for new, _ in made}
            for old in (e for e in book.entries if e is entry or e.name in names):
                changed = changed.dropped(old.name, force=force or bool(made))
            for new, patch in made:
                changed = changed.added(new)
                patch.save(self._place(new))
            self._write(changed)
            kept = {e.sha256 for e in changed.entries}
            for old in book.entries:  # last: a kill before this leaves files that nobody names
                if old.sha256 not in kept:
                    self._place(old).unlink(missing_ok=True)
            return tuple(new for new, _ in made)

    # -- reading -----------------------------------------------------------------------------------------

    def list(self) -> tuple[Entry, ...]:
        """All edits, in the order in which they were added."""
        return self.book.entries

    def verify(self, *, patches: bool = True) -> Book:
        """The book, once its chain and every patch were found to be what was written.

        Args:
            patches: read the patches, too.

        Raises:
            Damaged: something was altered, or is missing; the message names the line or the edit.
        """
        book = self.book
        for entry in book.entries if patches else ():
            self._patch(entry)
        return book

    def compose(self, model: Any = None, *, out: str | Path | None = None) -> Patch:
        """All that is switched on as one patch of the ledger's model.

        Args:
            out: a file that it is written to tensor by tensor; the patch then stays in it, and no more than the changes
                of one tensor are held.
            model: a host, or its tensors in files, for the shapes of tensors that edits change in different forms; the
                files of the ledger's model where not given.

        Raises:
            BadRequest: two edits bring one word with different meanings.
        """
        book = self.book
        parts = [self._patch(entry) for entry in book.live()]
        kinds: dict[str, set[str]] = {}
        for part in parts:
            for name, delta in part.deltas.items():
                kinds.setdefault(name, set()).add(delta.kind)
        mixed = sorted(name for name, found in kinds.items() if len(found) > 1)
        base = None if not mixed else stored(hosts.stored(book.model) if model is None else model)
        shapes = {} if base is None else {name: base.shape(name) for name in mixed}
        merged = [
            {"sha256": e.sha256, "scale": e.scale, "provenance": dict(p.provenance)}
            for e, p in zip(book.live(), parts, strict=True)
        ]
        words, hooks = united([p.words for p in parts]), tuple(h for p in parts for h in p.hooks)
        bare = Patch(base=book.base, hooks=hooks, words=words, provenance={"merged": merged})
        sums = Sums(list(zip(parts, (e.scale for e in book.live()), strict=True)), shapes)
        if out is None:
            return replace(bare, deltas={name: sums.of(name) for name in kinds})
        return built(bare, {name: sums.form(name) for name in kinds}, out)

    def against(self, host: Any, *, density: float = 0.2) -> Sequence[Against]:
        """How every two edits that are switched on stand in each other's way; nothing is drawn.

        Args:
            density: see `ops.interference`.
        """
        book = self.book
        live = book.live()
        parts = [self._scaled(entry, book) for entry in live]
        if len(parts) < 2 or not any(p.deltas for p in parts):
            return ()
        found = interference(parts, stored(self._model(host, book)), density=density)
        return tuple(
            Against(first=a.name, second=b.name, weights=w)
            for (a, b), w in zip(combinations(live, 2), found, strict=True)
        )

    def case(self, host: Any, *, look: Look | None = None, workers: int | None = 1, ray: str = "") -> Case:
        """What `check` draws: all that is switched on, merged, each as it is scaled.

        Raises:
            BadRequest: nothing is switched on.
        """
        book = self.book
        live = book.live()
        if not live:
            raise BadRequest("No edit of the ledger is switched on; there is nothing to look at.")
        found = ingredients(
            host := self._model(host, book), [self._scaled(e, book) for e in live], names=[e.name for e in live]
        )
        return merging(host, found, look=look, workers=workers, ray=ray)

    def check(
        self,
        host: Any,
        *,
        look: Look | None = None,
        out: str | Path | None = None,
        workers: int | None = 1,
        ray: str = "",
        command: str = "",
        progress: Progress | None = None,
    ) -> Done:
        """Measures what each edit keeps when all that are switched on are merged; see `run.merge`.

        Args:
            host: the ledger's model. out: folder for the patch and its receipt.

        Raises:
            Unsupported: an edit acts while the model runs.
        """
        with closing(self.case(host, look=look, workers=workers, ray=ray)) as case:
            system = catalog.verbs()["merge"].default
            return perform("merge", case, method=system, out=out, command=command, progress=progress)

    def write(self, out: str | Path, *, format: Literal["patch", "peft", "kohya"] = "patch", host: Any = None) -> Path:
        """Writes all that is switched on as one file; returns its path.

        Args:
            out: the folder.
            format: patch.safetensors, or a LoRA as `export_patch` writes it.
            host: the ledger's model; LoRAs need it, and it is loaded by its name where not given.

        Raises:
            BadRequest: nothing is switched on.
            Unsupported: a LoRA cannot hold it.
        """
        book = self.book
        if not book.live():
            raise BadRequest("No edit of the ledger is switched on; there is nothing to write.")
        if format == "patch":
            self.compose(host, out=Path(out) / PATCH_FILE)
            return Path(out) / PATCH_FILE
        model = self._model(host, book)
        return export_patch(self.compose(model), model, format, out).path

    # -- inside ------------------------------------------------------------------------------------------

    def _changing(self) -> AbstractContextManager[None]:
        """Until the block ends no other process changes this ledger."""
        return alone(self.folder, "the ledger")

    def _write(self, book: Book) -> None:
        book.write(self.folder / BOOK_FILE)

    def _place(self, entry: Entry) -> Path:
        return self.folder / "patches" / f"{entry.sha256}.safetensors"

    def _patch(self, entry: Entry) -> Patch:
        """An edit's patch, read and found to be the one that was added."""
        path = self._place(entry)
        header, seal, _ = sealed.opened(path)
        if (seal, header["base"]) != (entry.sha256, entry.made_on):
            raise Damaged(f"{path} is not the patch that was added as {entry.name}; get a fresh copy.")
        return Patch.open(path)

    def _scaled(self, entry: Entry, book: Book) -> Patch:
        """An edit as it counts: a change of the ledger's own model, whatever it was made on top of."""
        patch = self._patch(entry)
        patch = patch if patch.base == book.base else replace(patch, base=book.base)
        return patch if entry.scale == 1 else patch.scaled(entry.scale)

    def _model(self, host: Any, book: Book) -> Any:
        host = hosts.load(book.model) if host is None else host
        if host.fingerprint() != book.base:
            raise WrongBase(
                f"This ledger is of the model {book.base[:12]} ({book.model}), but {host.name} is "
                f"{host.fingerprint()[:12]}; give the model that it was made with, in the same precision."
            )
        return host

    def _under(self, book: Book, patch: Patch, host: Any) -> tuple[Under, ...]:
        """The edits that were in the model that a patch was made for."""
        if holds(host.root, patch.base):
            return ()
        live = [e for e in book.live() if e.scale and self._patch(e).deltas]
        found = book.base
        if live:
            with replace(self.compose(host), hooks=(), words={}).applied(host):
                found = host.fingerprint()
        if found != patch.base:
            on = f" With all that is switched on it is {found[:12]}." if live else ""
            raise WrongBase(
                f"The patch was made for the model {patch.base[:12]}, but the ledger's is {book.base[:12]}.{on} Add "
                "patches of one of these; switch on exactly those edits that this one was made on top of."
            )
        return tuple(Under(name=e.name, sha256=e.sha256, scale=e.scale) for e in live)


def _file(path: Path) -> Path:
    """The file of a patch, which may be named by its folder."""
    if path.is_dir() and (path / PATCH_FILE).is_file():
        return path / PATCH_FILE
    if not path.exists():
        raise Damaged(f"There is no {path}.")
    if not is_patch(path):
        if path.is_file():
            refuse_pickle(path)
        raise BadRequest(f"{path} is no patch, LoRA or embedding; a ledger keeps those alone.")
    return path


def _scalable(patch: Patch, scale: float) -> None:
    if patch.hooks:
        patch.scaled(scale)  # says why not, and computes nothing
