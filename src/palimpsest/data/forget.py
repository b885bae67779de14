"""What a model is asked to forget, in words that a deletion record can keep."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.samples import Samples, Split
from palimpsest.data.read import Dataset

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
        """From `class:cat`, `class:cat,dog`, `identity:s7` or `samples:list.csv`.

        The CSV has one sample a row: its path or row number in the first column, or in the column called `path`,
        `name` or `index` where the first row is a heading. For poisoned or mislabelled data of which only a part is
        known, that part is the list.

        Raises:
            BadRequest: another form, a list that is missing or empty.
        """
        kind, colon, rest = text.partition(":")
        if not colon or kind not in get_args(Kind):
            raise BadRequest(
                f"{text!r} is no forget request; write class:cat, class:cat,dog, identity:s7 or samples:list.csv."
            )
        if kind == "samples":
            return ForgetRequest(kind="samples", items=_listed(Path(rest).expanduser()))
        return ForgetRequest(kind=kind, items=tuple(w.strip() for w in rest.split(",") if w.strip()))  # type: ignore[arg-type]

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


def split(data: Dataset, request: ForgetRequest) -> Split:
    """The samples to forget and the rest.

    Raises:
        BadRequest: a class, identity or sample that the data do not have, nothing to forget, or nothing left.
    """
    mask = chosen(data, request)
    if bool(mask.all()):
        raise BadRequest(
            f"The request would forget all {len(mask)} samples, and nothing would be left to keep; forget fewer, or "
            "delete the model."
        )
    return Split(forget=data.samples[mask], retain=data.samples[~mask])


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
    `request` is the sha256 of the request's own text.
    """
    mask = chosen(data, request)
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


def _content(samples: Samples, row: int) -> str:
    digest = hashlib.sha256(str(samples.labels[row].item()).encode())
    digest.update(samples.images[row].contiguous().numpy().tobytes())
    return digest.hexdigest()


def chosen(data: Dataset, request: ForgetRequest) -> Tensor:
    """(n,) bool: which samples must be forgotten.

    Raises:
        BadRequest: as `split`, except that everything may be chosen.
    """
    rule = {"class": _of_classes, "identity": _of_groups, "samples": _of_names}[request.kind]
    mask = rule(data, request.items)
    if not bool(mask.any()):
        named = ", ".join(request.items[:PREVIEW])
        raise BadRequest(f"No sample of the data belongs to {named}: there is nothing to forget.")
    return mask


def _of_classes(data: Dataset, items: Sequence[str]) -> Tensor:
    if not data.classes:
        raise BadRequest("These data have values, not classes; ask to forget samples:list.csv or identity:... instead.")
    for item in items:
        _known(item, data.classes, "class")
    return torch.isin(data.samples.labels, torch.tensor([data.classes.index(item) for item in items]))


def _of_groups(data: Dataset, items: Sequence[str]) -> Tensor:
    groups = data.samples.groups
    if not groups:
        raise BadRequest(
            "These data do not say whom each picture shows; add an `identity` column or array, or folders "
            "<class>/<identity>/<picture>."
        )
    for item in items:
        _known(item, tuple(dict.fromkeys(groups)), "identity")
    wanted = set(items)
    return torch.tensor([group in wanted for group in groups])


def _of_names(data: Dataset, items: Sequence[str]) -> Tensor:
    index = {name: row for row, name in enumerate(data.samples.names)}
    mask = torch.zeros(len(data.samples), dtype=torch.bool)
    unknown = []
    for item in items:
        row = index.get(item, int(item) if item.isdecimal() else None)
        if row is None or row >= len(mask):
            unknown.append(item)
        else:
            mask[row] = True
    if unknown:
        raise BadRequest(
            f"{len(unknown)} of {len(items)} samples to forget are not in the data, first {unknown[0]!r}; samples are "
            f"called like {data.samples.names[0]!r}, or by row number from 0 to {len(mask) - 1}."
        )
    return mask


def _known(item: str, known: Sequence[str], what: str) -> None:
    if item in known:
        return
    close = difflib.get_close_matches(item, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(known[:40]) + (" ..." if len(known) > 40 else "")
    raise BadRequest(f"The data have no {what} {item!r}.{guess} Known: {listed}.")


def _listed(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BadRequest(f"The list of samples {path} cannot be read: {e}. Give a CSV file (UTF-8).") from e
    rows = [row for row in csv.reader(text.splitlines()) if row and any(cell.strip() for cell in row)]
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((heading.index(n) for n in ("path", "name", "index") if n in heading), None)
    cells = [row[column or 0].strip() for row in (rows if column is None else rows[1:]) if len(row) > (column or 0)]
    items = tuple(dict.fromkeys(cell for cell in cells if cell))
    if not items:
        raise BadRequest(f"The list of samples {path} is empty; there is nothing to forget.")
    return items
