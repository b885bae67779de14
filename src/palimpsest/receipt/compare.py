"""Several receipts side by side: what each edit removed, what it cost the rest, and what it cost to make."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.files import write_text
from palimpsest.ops.statistics import Interval
from palimpsest.receipt.compare_page import render
from palimpsest.receipt.downloads import table
from palimpsest.receipt.make import HTML_FILE, JSON_FILE
from palimpsest.receipt.pictures import check
from palimpsest.receipt.schema import load
from palimpsest.receipt.subject import Subject, find, subject_of

NAME = "compare"
_SHOWN = {"target": 6, "failed": 6, "neighbour": 4, "unrelated": 2}  # same-seed pictures a role


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system, or one receipt.

    Args:
        name: unique within a comparison.
        target: share of pictures that still show what was to go; before: of the untouched model.
        neighbours, unrelated: change of the share that shows what was asked for; None where nothing was measured.
        seconds, forwards, peak_bytes, patch_bytes: of the edit; None where not known.
        pictures: of targets, behind `target`.
        note: one sentence for the reader.
    """

    name: str
    target: Interval
    before: Interval
    neighbours: Interval | None
    unrelated: Interval | None
    seconds: float | None = None
    forwards: int | None = None
    peak_bytes: int | None = None
    patch_bytes: int | None = None
    pictures: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows that were measured on the same footing: the same model, concepts and seeds. subject: what they are about."""

    title: str
    rows: tuple[Row, ...]
    subject: str = "generator"


def compare(receipts: Sequence[str | Path], out: str | Path) -> tuple[Path, Path, Path]:
    """Compares receipts and writes compare.html, compare.json and compare.csv into a folder.

    Args:
        receipts: folders of receipts, or receipt.json files; at least two.

    Raises:
        BadRequest: fewer than two, or receipts about different models or targets.
        Damaged: one of them is no receipt.
    """
    paths = [p / JSON_FILE if p.is_dir() else p for p in map(Path, receipts)]
    if len(paths) < 2:
        raise BadRequest("There is nothing to compare: give the folders of two or more receipts.")
    datas = [load(p) for p in paths]
    _same_footing(paths, datas)
    names, subject = _names(paths, datas), subject_of(datas[0])
    targets = ", ".join(c["name"] for c in datas[0]["request"]["target"])
    try:
        rows = tuple(row(name, data, subject) for name, data in zip(names, datas, strict=True))
        strips = _strips(paths, datas, names, subject)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as e:
        raise Damaged(f"One of these receipts was altered: its parts do not fit together ({e}); verify it.") from e
    section = Section(title=f"{targets} in {datas[0]['base']['name']}", rows=rows, subject=subject.name)
    return write([section], Path(out), strips=strips, notes=_differences(names, datas))


def write(
    sections: Sequence[Section],
    out: Path,
    *,
    name: str = NAME,
    strips: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    alone: bool = True,
) -> tuple[Path, Path, Path]:
    """The page, the JSON and the CSV of a comparison.

    Args:
        strips: same-seed pictures, as `render` takes them.
        notes: what makes the rows less comparable, in sentences.
        alone: the page holds the JSON and the CSV, so that it can be sent alone; otherwise it links to those beside it.
    """
    plain = {
        "schema": "palimpsest/compare/1",
        "notes": list(notes),
        "sections": [{"title": s.title, "rows": [_plain(r) for r in s.rows]} for s in sections],
    }
    labels = [find(s.subject).compared for s in sections]
    text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    rows = _csv(sections)
    page = render(
        plain, labels, strips, downloads={f"{name}.json": text if alone else "", f"{name}.csv": rows if alone else ""}
    )
    return (
        write_text(out / f"{name}.html", page),
        write_text(out / f"{name}.json", text),
        write_text(out / f"{name}.csv", rows),
    )


def row(name: str, data: dict[str, Any], subject: type[Subject]) -> Row:
    """One receipt as a row, from the evidence that it keeps."""
    try:
        rates = subject.rates(subject.kept(data, {}))
    except BadRequest as e:
        raise BadRequest(f"The receipt of {name} cannot be compared: {e}.") from e
    cost = data["run"]["edit"]
    return Row(
        name=name,
        target=rates.target,
        before=rates.before,
        neighbours=rates.neighbours,
        unrelated=rates.unrelated,
        seconds=cost.get("seconds"),
        forwards=sum(cost["forwards"].values()) if cost.get("forwards") else None,
        peak_bytes=cost.get("peak_bytes"),
        patch_bytes=data["edited"].get("bytes"),
        pictures=rates.n,
        note=data["headline"],
    )


def _same_footing(paths: Sequence[Path], datas: Sequence[dict[str, Any]]) -> None:
    def footing(data: dict[str, Any]) -> tuple[str, str]:
        return data["base"]["fingerprint"], ", ".join(sorted(c["name"] for c in data["request"]["target"]))

    model, targets = footing(datas[0])
    for path, data in zip(paths[1:], datas[1:], strict=True):
        other, about = footing(data)
        if data["subject"] != datas[0]["subject"]:
            raise BadRequest(f"{path} is about a {data['subject']}, {paths[0]} about a {datas[0]['subject']}.")
        if other != model:
            raise BadRequest(
                f"{path} is about another model ({data['base']['name']} {other[:12]}) than {paths[0]} "
                f"({datas[0]['base']['name']} {model[:12]}); compare edits of one model."
            )
        if about != targets:
            raise BadRequest(f"{path} is about {about}, {paths[0]} about {targets}; compare edits of the same target.")


def _differences(names: Sequence[str], datas: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured differently, so that differences of the numbers may come from it."""
    found = []
    for name, data in zip(names[1:], datas[1:], strict=True):
        if _drawing(data) != _drawing(datas[0]):
            found.append(f"{name} was measured with other prompts, samples, seeds or settings than {names[0]}.")
        if next(iter(data["evaluators"].values()), None) != next(iter(datas[0]["evaluators"].values()), None):
            found.append(f"{name} was read by another judge than {names[0]}.")
    return found


def _drawing(data: dict[str, Any]) -> dict[str, Any]:
    """The plan of the pictures; what was measured or remarked beside them changes none."""
    return {
        k: v for k, v in data["plan"].items() if k not in ("resurfacing", "beside", "flags", "marked", "model", "base")
    }


def _names(paths: Sequence[Path], datas: Sequence[dict[str, Any]]) -> list[str]:
    """The method's name, with the folder's where two are the same."""
    found = [str((d["method"] or {}).get("name") or p.parent.name) for p, d in zip(paths, datas, strict=True)]
    return [
        name if found.count(name) == 1 else f"{name} ({path.parent.name or path.resolve().parent.name})"
        for name, path in zip(found, paths, strict=True)
    ]


def _strips(
    paths: Sequence[Path], datas: Sequence[dict[str, Any]], names: Sequence[str], subject: type[Subject]
) -> list[dict[str, Any]]:
    """Pictures that all pages show with the same prompt and seed: the untouched model's, then each edit's."""
    pages = [_pictures(path, data, subject) for path, data in zip(paths, datas, strict=True)]
    found: list[dict[str, Any]] = []
    left = dict(_SHOWN)
    for pair in subject.pairs(subject.kept(datas[0], {})):
        at = (pair.prompt, pair.seed)
        if left.get(pair.role, 0) and all(("before", *at) in p and ("after", *at) in p for p in pages):
            left[pair.role] -= 1
            cells = [{"name": "untouched", "source": pages[0][("before", *at)]}]
            cells += [{"name": n, "source": p[("after", *at)]} for n, p in zip(names, pages, strict=True)]
            found.append({"prompt": pair.prompt, "seed": pair.seed, "role": pair.role, "cells": cells})
    return found


def _pictures(path: Path, data: dict[str, Any], subject: type[Subject]) -> dict[tuple[str, str, int | None], str]:
    """(set, prompt, seed) -> data URI, of the pictures in a receipt's page that are those that it states."""
    page = path.with_name(HTML_FILE)
    if not page.is_file() or not data["shown"]:
        return {}
    pairs = {pair.row: pair for pair in subject.pairs(subject.kept(data, {}))}
    found = {}
    for name, encoded in check(data, page.read_text(encoding="utf-8", errors="replace"))[0].items():
        which, row = name.split("/")
        pair = pairs[int(row)]
        found[which, pair.prompt, pair.seed] = "data:image/webp;base64," + base64.b64encode(encoded).decode()
    return found


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON, rates in percent and changes in points."""
    found = asdict(row)
    for key in ("target", "before", "neighbours", "unrelated"):
        limits = getattr(row, key)
        found[key] = None if limits is None else {k: round(100 * v, 3) for k, v in limits._asdict().items()}
    return found


def _csv(sections: Sequence[Section]) -> str:
    rates = ("target", "before", "neighbours", "unrelated")
    costs = ("seconds", "forwards", "peak_bytes", "patch_bytes", "pictures")
    rows: list[list[Any]] = [
        ["section", "name", *(f"{r}_{k}" for r in rates for k in ("value", "low", "high")), *costs]
    ]
    for section in sections:
        for r in map(_plain, section.rows):
            limits = [r[key][k] if r[key] else None for key in rates for k in ("value", "low", "high")]
            rows.append([section.title, r["name"], *limits, *(r[c] for c in costs)])
    return table(rows)
