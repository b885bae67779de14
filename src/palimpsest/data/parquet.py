"""Parquet tables in the layouts of Hugging Face image data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.data.metadata import fact
from palimpsest.data.raw import IMAGES, LABELS, Row


def files_of_tables(path: Path, split: str) -> list[Path]:
    """The parquet files of a part of the data; [] where there are none.

    Known are one file, `train-00000-of-00002.parquet` in the folder, in `data/` or in a folder for each configuration,
    and `default/train/0000.parquet`, the hub's own conversion.

    Raises:
        BadRequest: there are files, but not of this part, or of several configurations.
    """
    if path.suffix == ".parquet":
        return [path]
    by_part: dict[tuple[str, str], list[Path]] = {}
    patterns = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    for file in sorted(found for pattern in patterns for found in path.glob(pattern)):
        inside = file.relative_to(path).parts
        if any(part.startswith(".") for part in inside):
            continue
        above, stem = inside[:-1], file.stem
        if stem.split("-")[0].isdecimal() and above:  # numbered files: the folder is the part
            above, stem = above[:-1], above[-1]
        by_part.setdefault(("/".join(above), stem.split("-")[0]), []).append(file)
    chosen = {where: files for (where, part), files in by_part.items() if part == split}
    if by_part and not chosen:
        there = ", ".join(sorted({part for _, part in by_part}))
        raise BadRequest(f"{path} has no parquet files of the split {split!r}; it has {there}.")
    if len(chosen) > 1:
        there = ", ".join(sorted(str(path / where) for where in chosen))
        raise BadRequest(f"{path} holds several data sets with a split {split!r}; give the folder of one: {there}.")
    return next(iter(chosen.values()), [])


def rows_of_parquet(files: Sequence[Path], labelled: bool) -> tuple[tuple[str, ...], list[Row]]:
    """The classes' names as the schema tells them (() where it does not), and the rows of all files.

    Raises:
        Unsupported: pyarrow is not installed.
        BadRequest: columns are missing, or files name different classes.
        Damaged: a file is no parquet.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise Unsupported("Parquet data need pyarrow: pip install 'palimpsest-concepts[data]'.") from e
    tables, named = [], {}
    for file in files:
        try:
            table = parquet.read_table(file)
        except Exception as e:  # arrow's own errors, and whatever a damaged file makes its readers trip over
            raise Damaged(f"{file} cannot be read as parquet: {_first_line(e)}. Fetch it again.") from e
        for wanted in (IMAGES, LABELS) if labelled else (IMAGES,):
            if not set(wanted) & set(table.schema.names):
                raise BadRequest(
                    f"{file} has no column {wanted[0]!r} (nor {' or '.join(wanted[1:])}); its columns are "
                    f"{', '.join(table.schema.names) or 'none'}. Rename the one that is meant."
                )
        tables.append(table)
        named[_classes(table.schema, file)] = file
    if len(named) > 1:
        raise BadRequest(
            f"{' and '.join(map(str, list(named.values())[:2]))} name different classes; give one data set."
        )
    return next(iter(named)), _rows(tables)


def _rows(tables: Sequence[Any]) -> list[Row]:
    columns = [next(name for name in IMAGES if name in table.schema.names) for table in tables]
    # A path names its picture only where no other row has the same one.
    paths = [_path(v) for table, column in zip(tables, columns, strict=True) for v in table[column]]
    unique = all(paths) and len(set(paths)) == len(paths)
    rows: list[Row] = []
    for table, column in zip(tables, columns, strict=True):
        known = table.select(
            [f.name for f in table.schema if f.name != column and (f.name in LABELS or _is_word(f.type))]
        )
        for value, facts in zip(table[column], known.to_pylist(), strict=True):
            said = fact(facts)
            rows.append(
                Row(
                    name=paths[len(rows)] if unique else str(len(rows)),
                    open=_opener(value),
                    label=said.label,
                    caption=said.caption,
                    columns=said.columns,
                )
            )
    return rows


def _is_word(kind: Any) -> bool:
    """Whether a column holds texts, numbers or truth values."""
    import pyarrow.types as of

    plain = kind.value_type if of.is_dictionary(kind) else kind
    return any(
        is_one(plain) for is_one in (of.is_string, of.is_large_string, of.is_integer, of.is_floating, of.is_boolean)
    )


def _opener(value: Any) -> Callable[[], bytes]:
    def load() -> bytes:
        encoded = (value["bytes"] if _is_struct(value) else value).as_py()
        if not isinstance(encoded, bytes):
            raise ValueError("the row holds no encoded picture")
        return encoded

    return load


def _is_struct(value: Any) -> bool:
    import pyarrow.types as of

    return of.is_struct(value.type)


def _path(value: Any) -> str:
    if not _is_struct(value) or "path" not in {field.name for field in value.type}:
        return ""
    return value["path"].as_py() or ""


def _classes(schema: Any, file: Path) -> tuple[str, ...]:
    """From what the `datasets` library writes into the schema, or from a plain list with commas between."""
    metadata = schema.metadata or {}
    label = next((name for name in LABELS if name in schema.names), "")
    try:
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
            names = features.get(label, {}).get("names") or ()
            if not all(isinstance(name, str) for name in names):
                raise TypeError("names of classes must be texts")
            return tuple(names)
        return tuple(metadata[b"classes"].decode().split(",")) if b"classes" in metadata else ()
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise Damaged(f"{file} has a schema whose classes cannot be read: {e!r}. Write it anew.") from e


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
