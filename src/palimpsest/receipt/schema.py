"""The receipt's schema: its number, what each number changed, its declaration, and reading a receipt.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict

from palimpsest.core import declared
from palimpsest.core.concept import Request
from palimpsest.core.declared import OPEN, Matching, Sha256, Within
from palimpsest.core.errors import Damaged
from palimpsest.core.reading import Change, Curve, MatrixRow

_FAMILY = "palimpsest/receipt/"
MOST_BYTES = 128 * 2**20
"""Three times what an audit of 30,000 prompts of one's own writes."""
NUMBER = 3
SCHEMA = f"{_FAMILY}{NUMBER}"
CHANGES: Mapping[int, str] = MappingProxyType(
    {
        2: "intervals of paired changes are Tango's, those of means are widened for few numbers, the noise floor pools "
        "all pictures of the untouched model, every interval and p allows for the looks of an audit that stops early, "
        "and the plan says whether resurfacing was asked for",
        3: "measures are named by set, model and name and hold what judges saw, features lie in a file beside the "
        "receipt, times and costs stand in a block of their own, and generators and classifiers are told alike",
    }
)
"""What each number changed in the meaning of fields that the one before had as well."""

Count = Annotated[int, Within(least=0)]
Hash = Annotated[str, Matching(r"([0-9a-f]{64})?", "a sha256 (64 hexadecimal digits) or nothing")]
Look = Annotated[str, Matching(r"[0-9a-f]{96}", "a 4 x 4 copy (96 hexadecimal digits)")]


class Stated(TypedDict):
    """A reading as a receipt states it."""

    name: str
    value: float | None
    concept: str
    role: str
    low: float | None
    high: float | None
    n: Count
    unit: str
    before: float | None
    floor: float | None
    p: float | None
    visible: float | None
    evaluator: str | None
    change: Change | None
    references: tuple[float, ...] | None
    curve: Curve | None
    row: MatrixRow | None
    detail: dict[str, Any]
    verdict: Literal["changed", "unchanged", "cannot tell", ""]


class Settings(TypedDict):
    """What decides a model's answers beside its tensors."""

    sha256: Sha256
    values: dict[str, Any]


class _Set(TypedDict, total=False):
    settings: Settings | None  # older receipts do not state them


class Model(_Set):
    name: str
    fingerprint: Hash


class EditedModel(Model):
    kind: Literal["model"]


class EditedPictures(Model):
    kind: Literal["pictures"]


class EditedPatch(TypedDict):
    kind: Literal["patch"]
    sha256: Sha256
    base: Hash
    file: str
    bytes: Count


class _Itself(TypedDict, total=False):
    judges_itself: bool


class Judged(_Itself):
    """An evaluator, and what loads it again; before judges could be the audited model, nothing said that one is not."""

    name: str
    version: str
    sha256: str
    threshold: float | None
    classes: list[str]
    licence: str
    source: str


class Spent(TypedDict, total=False):
    seconds: float | None
    pictures: Count
    forwards: dict[str, Count]
    peak_bytes: int | None


class Run(TypedDict):
    """What a clock and a machine say: all in which equal runs differ."""

    created: Annotated[str, Matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a time like 2026-01-31T12:00:00Z")]
    audit: Spent
    edit: Spent


class Card(TypedDict):
    name: str
    title: str
    year: int
    paper: str
    family: str
    claim: str


class Method(TypedDict, total=False):
    """The provenance of the patch, with the card of its system."""

    method: str
    name: str
    parameters: dict[str, Any]
    request: dict[str, Any]
    seed: int
    versions: dict[str, str]
    card: Card


class Picture(TypedDict):
    sha256: Sha256
    look: Look


class Sentence(TypedDict):
    tone: Literal["good", "bad", "unsure", "plain"]
    text: str


class Shown(TypedDict):
    picture: Annotated[str, Matching(r"[a-z]+/\d{1,9}", "a set and a row, like before/3")]
    sha256: Sha256


class Vectors(TypedDict):
    file: str
    sha256: Sha256


class Document(TypedDict):
    """A receipt. A field may be added under the same number; one that changes its meaning raises it."""

    schema: Literal["palimpsest/receipt/3"]
    subject: str
    command: str
    headline: str
    summary: list[Sentence]
    request: Request
    base: Model
    edited: EditedModel | EditedPictures | EditedPatch
    method: Annotated[Method, OPEN] | None
    plan: dict[str, Any]
    evaluators: dict[str, Judged]
    size: list[Count] | None
    pictures: dict[str, list[Picture]]
    measures: dict[str, list[Any]]
    vectors: Vectors | None
    readings: list[Stated]
    versions: dict[str, str]
    shown: list[Shown]
    run: Run
    seal: str


def load(path: Path) -> dict[str, Any]:
    """The content of a receipt.json.

    Raises:
        Damaged: not a receipt, not as declared, or one of another schema: its numbers follow from other formulas, so
            that nothing could be said about them. Reading an older one as if it were unchecked would let a forger
            choose its number.
    """
    data = declared.read(path, dict, "a receipt", most=MOST_BYTES)
    schema = str(data.get("schema", ""))
    if not schema.startswith(_FAMILY):
        raise Damaged(f"{path} is JSON, but no receipt: its schema is {schema!r}, expected {SCHEMA!r}.")
    if schema != SCHEMA:
        raise Damaged(_another(path, schema, data))
    declared.fitted(data, Document, str(path))
    return data


def _another(path: Path, schema: str, data: Mapping[str, Any]) -> str:
    number = schema.removeprefix(_FAMILY)
    if not (number.isascii() and number.isdecimal() and len(number) < 6) or int(number) > NUMBER:
        return f"{path} has schema {schema!r}; this version reads {SCHEMA!r}: use the version that wrote it."
    since = "; ".join(f"since {n}, {what}" for n, what in CHANGES.items() if n > int(number))
    stated = data.get("versions")
    wrote = stated.get("palimpsest", "") if isinstance(stated, Mapping) else ""
    return (
        f"{path} has the older schema {schema!r}; this version reads {SCHEMA!r} and would compute other numbers: "
        f"{since}. Check it with the version that wrote it{f' (palimpsest {wrote})' if wrote else ''}, or audit "
        "again: the patch and the models are as good as before."
    )
