"""Parquet tables in the layout of Hugging Face image data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.data.raw import Row

GROUPS = ("identity", "group")
LABELS = ("label", "labels", "fine_label")
IMAGES = ("image", "img")


def rows_of_parquet(files: Sequence[Path]) -> tuple[tuple[str, ...], Iterator[Row]]:
    """The classes' names as the schema tells them (() where it does not), and the rows of all files.

    Raises:
        Unsupported: pyarrow is not installed.
        BadRequest: columns are missing.
        Damaged: a file is no parquet.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise Unsupported("Parquet data need pyarrow: pip install 'palimpsest-concepts[data]'.") from e
    try:
        tables = [parquet.read_table(file) for file in files]
    except (arrow.ArrowException, OSError) as e:
        raise Damaged(f"{files[0].parent} holds a parquet file that cannot be read: {e}. Fetch it again.") from e
    schema = tables[0].schema
    image, label = (_column(schema.names, names, files[0]) for names in (IMAGES, LABELS))
    group = next((n for n in GROUPS if n in schema.names), None)
    return _classes(schema.metadata or {}, label), _rows(tables, image, label, group)


def _rows(tables: Sequence[Any], image: str, label: str, group: str | None) -> Iterator[Row]:
    # A path names its picture only where no other row has the same one.
    paths = [_path(v) for t in tables for v in t[image]]
    unique = all(paths) and len(set(paths)) == len(paths)
    number = 0
    for table in tables:
        owners = table[group].to_pylist() if group else [""] * len(table)
        for value, target, owner in zip(table[image], table[label].to_pylist(), owners, strict=True):
            name = paths[number] if unique else str(number)
            if target is None:
                raise BadRequest(f"Row {number} of the data ({name}) has no label; give it one or remove the row.")
            called = f"s{owner}" if isinstance(owner, int) else str(owner or "")
            yield Row(name=name, label=target, group=called, open=_opener(value))
            number += 1


def _opener(value: Any) -> Callable[[], bytes]:
    def load() -> bytes:
        encoded = (value["bytes"] if _is_struct(value) else value).as_py()
        if not isinstance(encoded, bytes):
            raise ValueError("the row holds no encoded picture")
        return encoded

    return load


def _is_struct(value: Any) -> bool:
    import pyarrow as arrow

    return arrow.types.is_struct(value.type)


def _path(value: Any) -> str:
    if not _is_struct(value) or "path" not in {field.name for field in value.type}:
        return ""
    return value["path"].as_py() or ""


def _column(names: Sequence[str], wanted: Sequence[str], file: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise BadRequest(f"{file} has no column {wanted[0]!r}; its columns are {', '.join(names)}.")


def _classes(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """From what the `datasets` library writes into the schema, or from a plain list with commas between."""
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return tuple(features.get(label, {}).get("names") or ())
    if b"classes" in metadata:
        return tuple(metadata[b"classes"].decode().split(","))
    return ()
