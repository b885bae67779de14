"""What a model is asked to forget, in words that a deletion record can keep."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Material, Pictures
from palimpsest.data.dataset import NAMED, Dataset
from palimpsest.data.tables import read_table
from palimpsest.ops.names import listed, meant, normal, only

Kind = Literal["class", "samples", "identity"]
PREVIEW = 8  # names that a concept shows; the record holds them all by their hash


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """Which samples of a data set must be forgotten.

    Args:
        kind: "class" (every sample of these classes), "identity" (every sample of these groups, whatever their
            class) or "samples" (these names, or row numbers where no sample has such a name).
        items: the classes, groups or samples; at least one, none twice.

    Raises:
        BadRequest: an unknown kind, nothing named, or something named twice.
    """

    kind: Kind
    items: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BadRequest(f"Unknown kind {self.kind!r} of a forget request; use one of {', '.join(get_args(Kind))}.")
        if not self.items:
            raise BadRequest(f"The forget request names no {self.kind}; there is nothing to forget.")
        twice = [item for item in self.items if self.items.count(item) > 1] if len(self.items) < 1000 else []
        if twice or len(set(self.items)) < len(self.items):
            shown = f" ({twice[0]!r})" if twice else ""
            raise BadRequest(f"The forget request names something twice{shown}; name each {self.kind} once.")

    @staticmethod
    def parse(text: str) -> ForgetRequest:
        """From `class:cat`, `class:cat,dog`, `class:tench, Tinca tinca`, `identity:s7` or `samples:list.csv`.

        Commas part names, and names that hold commas are put together again where the data have them so (`resolved`);
        quotes keep one together in any case. The CSV (`data.tables`) has one sample a row: its path or row number in
        the first column, or in the column called `path`, `name` or `index` where the first row is a heading. For
        poisoned or mislabelled data of which only a part is known, that part is the list.

        Raises:
            BadRequest: another form, a list that is missing or empty.
        """
        kind, colon, rest = text.partition(":")
        if not colon or kind not in get_args(Kind):
            raise BadRequest(
                f"{text!r} is no forget request; write class:cat, class:cat,dog, identity:s7 or samples:list.csv."
            )
        if kind == "samples":
            return ForgetRequest(kind="samples", items=_listed(Path(rest)))
        try:
            (items,) = csv.reader([rest], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as e:
            raise BadRequest(f"{text!r} cannot be read: {e}. Close its quotes.") from e
        return ForgetRequest(kind=kind, items=tuple(w.strip() for w in items if w.strip()))  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, "items": list(self.items)}

    def concepts(self) -> Request:
        """The same as a Request about concepts, which every system takes beside its data."""
        if self.kind == "class":
            return Request(target=tuple(Concept(name=item, kind="class") for item in self.items))
        if self.kind == "identity":
            return Request(target=tuple(Concept(name=item, kind="identity") for item in self.items))
        name = ", ".join(self.items[:PREVIEW]) + (" ..." if len(self.items) > PREVIEW else "")
        return Request(target=(Concept(name=f"{len(self.items)} samples: {name}", kind="class"),))


def split(data: Dataset, request: ForgetRequest) -> Material:
    """The pictures to "forget" and those to "retain".

    Raises:
        BadRequest: a class, identity or sample that the data do not have, nothing to forget, or nothing left.
    """
    mask = chosen(data, request)
    if bool(mask.all()):
        raise BadRequest(
            f"The request would forget all {len(mask)} samples, and nothing would be left to keep; forget fewer, or "
            "delete the model."
        )
    return Material({"forget": data.samples[mask], "retain": data.samples[~mask]})


def resolved(data: Dataset, request: ForgetRequest) -> ForgetRequest:
    """The same request with classes and identities as the data call them, in their order; what is printed and kept.

    Raises:
        BadRequest: a name that the data do not have, or that may mean several.
    """
    if request.kind == "samples":
        return request
    known = data.classes if request.kind == "class" else tuple(dict.fromkeys(filter(None, _identities(data))))
    if not known:
        raise BadRequest("These data have values, not classes; ask to forget samples:list.csv or identity:... instead.")
    places = dict.fromkeys(
        place for item in _joined(request.items, known) for place in [_place(item, data, known, request)]
    )
    return replace(request, items=tuple(known[place] for place in places))


def told(data: Dataset, request: ForgetRequest) -> list[str]:
    """What a user should see of a request before work begins, a line each: what is meant, and copies that stay."""
    clear, material = resolved(data, request), split(data, request)
    forget, retain = len(material["forget"]), len(material["retain"])
    lines = [f"asked    {clear.kind} {listed(clear.items)}: {forget} pictures to forget, {retain} to keep"]
    copies = repeated(material)
    if copies:
        shown = "; ".join(f"{kept} is {gone}" for gone, kept in copies[:NAMED]) + (
            " ..." if len(copies) > NAMED else ""
        )
        lines.append(f"copies   {len(copies)} retained pictures equal one to forget, pixel by pixel: {shown}")
    return lines


def repeated(material: Material) -> list[tuple[str, str]]:
    """(name of a picture to forget, name of its equal) for every retained picture that equals one to forget.

    Cost: one hash of every picture.
    """
    forget, retain = material["forget"], material["retain"]
    gone = {_digest(forget, i): name for i, name in reversed(list(enumerate(forget.names)))}
    pairs = ((gone.get(_digest(retain, i)), name) for i, name in enumerate(retain.names))
    return [(name, copy) for name, copy in pairs if name is not None]


def drawn(data: Dataset, share: float, seed: int = 0) -> ForgetRequest:
    """A request for a random share of the samples, in (0, 1), by row number; equal seeds draw equal rows."""
    if not 0 < share < 1:
        raise BadRequest(f"The share of samples to forget is {share}; it must lie between 0 and 1.")
    n = len(data.samples)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, round(share * n))].sort().values
    return ForgetRequest(kind="samples", items=tuple(map(str, rows.tolist())))


def record(data: Dataset, request: ForgetRequest) -> dict[str, Any]:
    """What a deletion record keeps: the request, how many samples it means, and hashes that show which.

    `content` is the sha256 over (label, pixels) of each forgotten sample, in the order of these digests: it depends
    on the pictures alone, so that a third person can check a claim without the record holding any picture or name.
    `request` is the sha256 of the request's own text, with names as the data call them.
    """
    mask, request = chosen(data, request), resolved(data, request)
    wanted = data.samples[mask]
    each = sorted(_content(wanted, i) for i in range(len(wanted)))
    asked = json.dumps({**request.plain(), "items": sorted(request.items)}, sort_keys=True, ensure_ascii=False)
    return {
        "kind": request.kind,
        "items": list(request.items) if request.kind != "samples" else len(request.items),
        "samples": len(wanted),
        "of": len(data.samples),
        "request": hashlib.sha256(asked.encode()).hexdigest(),
        "content": hashlib.sha256("".join(each).encode()).hexdigest(),
    }


def _content(samples: Pictures, row: int) -> str:
    return hashlib.sha256(str(samples.labels[row].item()).encode() + _bytes(samples, row)).hexdigest()


def _digest(samples: Pictures, row: int) -> bytes:
    return hashlib.sha256(_bytes(samples, row)).digest()


def _bytes(samples: Pictures, row: int) -> bytes:
    return samples.images[row].contiguous().numpy().tobytes()


def chosen(data: Dataset, request: ForgetRequest) -> Tensor:
    """(n,) bool: which samples must be forgotten.

    Raises:
        BadRequest: as `split`, except that everything may be chosen.
    """
    items = resolved(data, request).items
    if request.kind == "class":
        mask = torch.isin(data.samples.labels, torch.tensor([data.classes.index(item) for item in items]))
    elif request.kind == "identity":
        wanted = set(items)
        mask = torch.tensor([identity in wanted for identity in _identities(data)])
    else:
        mask = _of_names(data.samples.names, items)
    if not bool(mask.any()):
        raise BadRequest(f"No sample of the data belongs to {listed(items)}: there is nothing to forget.")
    return mask


def _identities(data: Dataset) -> tuple[str, ...]:
    identities = data.samples.columns.get("identity", ())
    if not identities:
        raise BadRequest(
            "These data do not say whom each picture shows; add an `identity` column or array, or folders "
            "<class>/<identity>/<picture>."
        )
    return identities


def _place(item: str, data: Dataset, known: Sequence[str], request: ForgetRequest) -> int:
    """The place among the known of what an item means, as the model calls it or as the data did."""
    matched = data.matched if request.kind == "class" else ()
    earlier = [known.index(matched[i][1]) for i in meant(item, [name for name, _ in matched])]
    places = tuple(dict.fromkeys((*meant(item, known), *earlier)))
    if len(places) == 1:
        return places[0]
    if places:
        both = " or ".join(f"{known[i]!r} (number {i})" for i in places)
        raise BadRequest(f"{request.kind}:{item} may mean {both}. Write its whole name.")
    return only(item, known, request.kind, "The data")


def _joined(items: Sequence[str], known: Sequence[str]) -> list[str]:
    """The items, with neighbours put together that are one name of the data with commas in it.

    Raises:
        BadRequest: they are also names of their own.
    """
    whole = {normal(name): name for name in known if "," in name}
    most = max((name.count(",") for name in whole), default=0) + 1
    joined, i = [], 0
    while i < len(items):
        ends = (j for j in range(min(len(items), i + most), i + 1, -1) if normal(", ".join(items[i:j])) in whole)
        end = next(ends, i + 1)
        name = whole[normal(", ".join(items[i:end]))] if end > i + 1 else items[i]
        apart = [meant(item, known) for item in items[i:end]]
        if end > i + 1 and all(apart) and {p for places in apart for p in places} != {known.index(name)}:
            alone = ", ".join(repr(item) for item in items[i:end])
            raise BadRequest(
                f"{name!r} may mean one name, or each of {alone}. Put quotes around each name that is meant."
            )
        joined.append(name)
        i = end
    return joined


def _of_names(names: Sequence[str], items: Sequence[str]) -> Tensor:
    """Samples by name; by row number where no sample is called by a number, or every one by its own."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    if not any(name.isdecimal() for name in rows):
        rows |= {str(row): [row] for row in range(len(names))}
    unknown = [item for item in items if item not in rows]
    if unknown:
        raise BadRequest(
            f"{len(unknown)} of {len(items)} samples to forget are not in the data, first {unknown[0]!r}; samples are "
            f"called like {names[0]!r}, or by row number from 0 to {len(names) - 1}."
        )
    several = next((item for item in items if len(rows[item]) > 1), None)
    if several is not None:
        raise BadRequest(f"{len(rows[several])} samples are called {several!r}; give each a name of its own.")
    mask = torch.zeros(len(names), dtype=torch.bool)
    mask[[rows[item][0] for item in items]] = True
    return mask


def _listed(path: Path) -> tuple[str, ...]:
    table = read_table(path.expanduser(), "a list of samples")
    column = table.column(("path", "name", "index"))
    rows = table.rows if column is None else table.rows[1:]
    items = tuple(dict.fromkeys(cells[column or 0] for _, cells in rows if len(cells) > (column or 0)))
    if not any(items):
        raise BadRequest(f"The list of samples {path} is empty; there is nothing to forget.")
    return tuple(filter(None, items))
