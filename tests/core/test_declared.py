"""Whatever a file says: it is of the declared type, or it is refused in words."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.core.concept import Concept
from palimpsest.core.declared import DEPTH, OPEN, Matching, Within, fitted, parsed, read
from palimpsest.core.errors import Damaged


class Needed(TypedDict):
    steps: Annotated[int, Within(1, 1000)]
    name: str


class Settings(Needed, total=False):
    scale: float
    size: int | None
    mode: Literal["fast", 1]
    words: tuple[str, ...]
    pair: tuple[int, float]
    table: dict[str, float]
    sure: bool
    label: str | int
    base: Annotated[str, Matching("[0-9a-f]{4}", "four digits")]


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int
    y: float = 0.0


GOOD = {"steps": 5, "name": "a"}


def test_what_fits_is_returned_as_the_types_say() -> None:
    plain = GOOD | {"scale": 2, "size": None, "mode": 1, "words": ["a", "b"], "pair": [1, 0.5], "table": {"k": 1.5}}
    plain |= {"sure": True, "label": 3, "base": "00ff"}
    settings_ = parsed(json.dumps(plain), Settings, "x.json")
    assert settings_ == plain | {"words": ("a", "b"), "pair": (1, 0.5)}
    assert parsed('{"x": 1}', Point, "x") == Point(x=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"steps": 5, "name": "a", "steps": 6}', "stands twice"),
        ('{"steps": NaN, "name": "a"}', "NaN"),
        ('{"steps": 5, "name": "a", "scale": -Infinity}', "-Infinity"),
        ('{"steps": 5, "name": "a", "scale": 1e400}', "not finite"),
        ('{"steps": 1' + "0" * 30 + ', "name": "a"}', "64 bits"),
        ('{"steps": 1' + "0" * 5000 + ', "name": "a"}', "JSON"),
        ('{"steps": 5, "name": "\\ud800"}', "surrogate"),
        ('{"steps": 5, "name": "a", "\\udc00": 1}', "surrogate"),
        ('{"steps": 5, "name": "a\\u0000"}', "null character"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested deeper"),
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "the content is a list of 0, expected a table"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: str, says: str) -> None:
    with pytest.raises(Damaged, match=says):
        parsed(text, Settings, "x.json")


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(Damaged, match="utf-8"):
        parsed(b'{"name": "\xff"}', Settings, "x.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": True}, "'steps' is True, expected a whole number"),
        ({"steps": 5.0}, "'steps' is 5.0"),
        ({"steps": "5"}, "'steps' is '5'"),
        ({"steps": 0}, "at least 1 and at most 1,000"),
        ({"steps": 10**12}, "at least 1 and at most 1,000"),
        ({"name": None}, "'name' is None, expected text"),
        ({"scale": True}, "finite number"),
        ({"scale": math.nan}, "finite number"),
        ({"scale": 10**400}, "finite number"),
        ({"size": "small"}, "whole number"),
        ({"mode": True}, "one of 'fast', 1"),
        ({"mode": 1.0}, "one of 'fast', 1"),
        ({"mode": ["fast"]}, "one of"),
        ({"words": "ab"}, "a list"),
        ({"words": ["a", 1]}, r"'words\[1\]' is 1, expected text"),
        ({"pair": [1]}, "a list of 2"),
        ({"table": []}, "a table"),
        ({"table": {"k": "v"}}, r"'table.k' is 'v'"),
        ({"sure": 1}, "true or false"),
        ({"label": 1.5}, "several types"),
        ({"base": "00fg"}, "four digits"),
        ({"extra\x1b[2J": 1}, r"'extra\\x1b\[2J' is not known"),
    ],
)
def test_each_odd_field_is_named_with_what_was_expected(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Damaged, match=says) as refused:
        fitted(GOOD | change, Settings, "x.json")
    assert str(refused.value).isprintable()


def test_a_missing_field_is_named_and_an_open_table_takes_others() -> None:
    with pytest.raises(Damaged, match="'name' is missing"):
        fitted({"steps": 1}, Settings, "x.json")
    assert fitted(GOOD | {"other": 1}, Annotated[Settings, OPEN], "x")["other"] == 1  # type: ignore[arg-type]


def test_what_a_class_itself_refuses_is_refused_as_damage() -> None:
    with pytest.raises(Damaged, match="needs a name"):
        fitted({"name": " "}, Concept, "x.json")


def test_files_are_bounded_and_must_be_files(tmp_path: Path) -> None:
    long = tmp_path / "long.json"
    long.write_text('"' + "x" * 100 + '"')
    with pytest.raises(Damaged, match="longer than the 50 bytes"):
        read(long, str, "a name", most=50)
    with pytest.raises(Damaged, match="no name"):
        read(tmp_path, str, "a name")
    with pytest.raises(Damaged):
        read(Path("a\0b"), str, "a name")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(Damaged, match="no name"):
            read(tmp_path / "pipe", str, "a name")  # reading one would wait for ever


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({*Settings.__annotations__, "x"})), ANYTHING), st.booleans())
def test_any_json_fits_or_is_refused(change: dict[str, Any], whole: bool) -> None:
    try:
        fields = parsed(json.dumps((GOOD if whole else {}) | change), Settings, "x.json")
    except Damaged:
        return
    assert type(fields["steps"]) is int
    assert 1 <= fields["steps"] <= 1000


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(content: bytes) -> None:
    try:
        parsed(content, Settings, "x.json")
    except Damaged:
        return
    assert isinstance(json.loads(content), dict)
