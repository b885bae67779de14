"""What a file says is checked before anything uses it: strict JSON, then shape, types and bounds against a type.

A declaration is an ordinary type, so that a type checker knows what was read: `int`, `float`, `str | None`,
`Literal[...]`, `tuple[str, ...]`, `list[int]`, `dict[str, float]`, a TypedDict or a dataclass (keys that it does not
have are refused, unless it is `Annotated[..., OPEN]`), and `Annotated[int, Within(1, 1000)]`, which bounds a number,
or the length of a text, a list or a table. `Any` is any JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from palimpsest.core.errors import Damaged, PalimpsestError

T = TypeVar("T")

MOST_BYTES = 16 * 2**20
"""Three times what the receipt of a large audit holds."""
DEPTH = 64
OPEN = "keys that the declaration does not have are left as they are"


@dataclass(frozen=True)
class Within:
    """From `least` (above it, where `open`) to `most`: a number, or the length of a text, a list or a table."""

    least: float = -math.inf
    most: float = math.inf
    open: bool = False

    def __str__(self) -> str:
        low = f"above {self.least:,}" if self.open else f"at least {self.least:,}" if self.least > -math.inf else ""
        high = f"at most {self.most:,}" if self.most < math.inf else ""
        return " and ".join(part for part in (low, high) if part)

    def holds(self, value: float) -> bool:
        return (self.least < value if self.open else self.least <= value) and value <= self.most


@dataclass(frozen=True)
class Matching:
    """A text that the whole pattern matches; `says` describes it in an error."""

    pattern: str
    says: str


Sha256 = Annotated[str, Matching(r"[0-9a-f]{64}", "a sha256 (64 hexadecimal digits)")]


class _Odd(ValueError):
    """What does not fit, before it is known in which file."""


def read(path: Path, kind: type[T], what: str, *, most: int = MOST_BYTES) -> T:
    """The content of a JSON file, of the declared type.

    Args:
        what: the file in words, for errors: "a receipt".
        most: bytes; a longer file is refused unread.

    Raises:
        Damaged: no such file, not strict JSON, or not what is declared.
    """
    return parsed(text_of(path, what, most=most), kind, str(path))


def text_of(path: Path, what: str, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a small file; `what` and `most` as in `read`."""
    try:
        if not path.is_file():
            raise Damaged(f"There is no {bare(what)} at {path}.")
        with open(path, "rb") as f:
            content = f.read(most + 1)
    except (OSError, ValueError) as e:  # ValueError: a path with a null character
        raise Damaged(f"The {bare(what)} at {path} cannot be read: {e}.") from e
    if len(content) > most:
        raise Damaged(f"The {bare(what)} at {path} is longer than the {most:,} bytes that one may have.")
    return content


def parsed(text: str | bytes, kind: type[T], where: str) -> T:
    """A JSON text as the declared type; `where` names its file or place in errors.

    Stricter than `json.loads`: no key twice, no NaN or infinity (1e400 is one), no integer beyond 64 bits, no half
    characters (lone surrogates) or nulls in texts, no nesting deeper than DEPTH.

    Raises:
        Damaged: the text is not that.
    """
    try:
        plain = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_once, parse_constant=_refused
        )
        _plain(plain)
    except (ValueError, RecursionError) as e:
        why = f"it is nested deeper than {DEPTH} levels" if isinstance(e, RecursionError) else str(e)
        raise Damaged(f"{where} is not the JSON that it should be: {why}. It is damaged or of another kind.") from e
    return fitted(plain, kind, where)


def fitted(plain: Any, kind: type[T], where: str) -> T:
    """Plain JSON as the declared type: lists become tuples and dataclasses are built where the type says so.

    Raises:
        Damaged: it is not that; the message names the first field that does not fit and what was expected.
    """
    try:
        return _fit(plain, kind, "")
    except _Odd as e:
        raise Damaged(f"{where} is not as declared: {e}. It is damaged, altered or of another version.") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} stands twice in one object")
    return table


def _refused(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def _plain(root: Any) -> None:
    """Refuses what JSON allows and no file of ours holds; by a stack of its own, since depth is what it bounds."""
    stack = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > DEPTH:
            raise RecursionError
        if isinstance(value, dict):
            stack += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            stack += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            if "\0" in value:
                raise ValueError(f"the text {shown(value)} holds a null character")
            try:
                value.encode()
            except UnicodeEncodeError as e:
                raise ValueError(f"the text {shown(value)} holds half a character (a lone surrogate)") from e
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it holds a number that is not finite")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("it holds an integer beyond 64 bits")


def _fit(value: Any, kind: Any, at: str) -> Any:
    if kind is Any:
        return value
    if kind in _SCALARS:
        if not _SCALARS[kind][1](value):
            raise _odd(value, _SCALARS[kind][0], at)
        return value
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(_table(value, of[0], at, True) if OPEN in of[1:] else _fit(value, of[0], at), of[1:], at)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in of):
            raise _odd(value, "one of " + ", ".join(map(repr, of)), at)
        return value
    if origin in (Union, UnionType):
        return _either(value, of, at)
    if origin in (list, tuple):
        return _items(value, origin, of, at)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _odd(value, "a table", at)
        return {key: _fit(part, of[1], _under(at, key)) for key, part in value.items()}
    if isinstance(value, dict) and set(value) == {"method", "parameters"} and hasattr(kind, "from_named"):
        return kind.from_named(value)  # a system as a parameter of another
    if is_typeddict(kind) or is_dataclass(kind):
        return _table(value, kind, at, False)
    raise TypeError(f"{kind!r} is no declaration that this module knows")  # the caller's mistake, never the file's


def _items(value: Any, origin: type, of: tuple[Any, ...], at: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _odd(value, "a list", at)
    if origin is tuple and of[-1] is not Ellipsis:
        if len(value) != len(of):
            raise _odd(value, f"a list of {len(of)}", at)
        return tuple(_fit(part, one, f"{at}[{i}]") for i, (part, one) in enumerate(zip(value, of, strict=True)))
    return origin(_fit(part, of[0], f"{at}[{i}]") for i, part in enumerate(value))


def _either(value: Any, of: tuple[Any, ...], at: str) -> Any:
    if value is None and NoneType in of:
        return None
    others = [kind for kind in of if kind is not NoneType]
    if len(others) == 1:  # its own words say more than "none of these"
        return _fit(value, others[0], at)
    for kind in others:
        try:
            return _fit(value, kind, at)
        except _Odd:
            continue
    raise _odd(value, "one of several types", at)


def _table(value: Any, kind: Any, at: str, is_open: bool) -> Any:
    if not isinstance(value, dict):
        raise _odd(value, "a table", at)
    hints, needed = _declared(kind)
    if missing := sorted(needed - set(value)):
        raise _Odd(f"{shown(_under(at, missing[0]), 80)} is missing")
    unknown = sorted(map(str, set(value) - set(hints)))
    if unknown and not is_open:
        raise _Odd(f"{shown(_under(at, unknown[0]), 80)} is not known to this version")
    parts = {key: _fit(value[key], hint, _under(at, key)) for key, hint in hints.items() if key in value}
    if is_typeddict(kind):
        return {**value, **parts}
    try:
        return kind(**parts)
    except (PalimpsestError, TypeError, ValueError, OverflowError) as e:
        raise _Odd(f"{shown(at, 80) if at else 'the content'}: {e}") from e


@cache
def _declared(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, kind.__required_keys__
    own = [f for f in fields(kind) if f.init]
    needed = frozenset(f.name for f in own if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: hints[f.name] for f in own}, needed


def _bounded(value: Any, bounds: tuple[Any, ...], at: str) -> Any:
    for bound in bounds:
        if isinstance(bound, Within):
            size = value if isinstance(value, (int, float)) else len(value)
            if not bound.holds(size):
                raise _odd(value, f"{'' if size is value else 'a length of '}{bound}", at)
        elif isinstance(bound, Matching) and not re.fullmatch(bound.pattern, str(value)):
            raise _odd(value, bound.says, at)
    return value


def _under(at: str, key: str) -> str:
    return f"{at}.{key}" if at else str(key)


def _odd(value: Any, expected: str, at: str) -> _Odd:
    return _Odd(f"{shown(at, 80) if at else 'the content'} is {shown(value)}, expected {expected}")


def shown(value: Any, most: int = 40) -> str:
    """A value of a file as an error shows it: on one line, short, without control characters."""
    if isinstance(value, (dict, list)):
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value[:most]) if isinstance(value, str) else ascii(value)[:most]
    return text + ("..." if isinstance(value, str) and len(value) > most else "")


def bare(what: str) -> str:
    """Words without their article: "a receipt" -> "receipt"."""
    return re.sub("^(an?|the) ", "", what)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


_SCALARS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a finite number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    dict: ("a table", lambda value: isinstance(value, dict)),
    list: ("a list", lambda value: isinstance(value, list)),
    NoneType: ("null", lambda value: value is None),
    None: ("null", lambda value: value is None),
}
