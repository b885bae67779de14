"""Two erasures on one model: made apart and composed, and made one after the other in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.method import versions
from palimpsest.core.patch import compose
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.pictures import evidence_of, groups_of, host_of, method_of
from palimpsest.exam.rates import share
from palimpsest.probes.plan import plan
from palimpsest.run.requests import request

PROMPTS = 6  # for each of the two targets
WAYS = ("first", "second", "composed", "first then second", "second then first")
(PAIR,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int, prompts: int = PROMPTS) -> dict[str, Any]:
    """Presence bits of the same pictures after each of WAYS; in its own words where a way is refused.

    Composed: both patches were made for the untouched model and their changes are added. One after the other: the
    second is made on the model with the first applied. Every record also says what each erasure does alone.

    Cost: four runs of the method, 48 pictures a way.
    """
    host = host_of(case["host"])
    looks = plan(
        host,
        request(host, [case["first"], case["second"]]),
        prompts_per_concept=prompts,
        seeds=1,
        neighbours=2,
        unrelated=4,
        first_seed=10_000_000 + 100_000 * seed,
    )
    groups: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for way, make in ways(host, case, seed, lambda: method_of(system)):
        try:
            seen = groups_of(evidence_of(host, make(), looks, model=case["host"]))
        except PalimpsestError as e:
            refused[way] = str(e)
            continue
        groups = groups or [{k: v for k, v in g.items() if k != "after"} for g in seen]
        for group, g in zip(groups, seen, strict=True):
            group[way] = g["after"]
    return {"groups": groups, "refused": refused, "versions": versions()}


def ways(host: Any, pair: Case, seed: int, method: Callable[[], Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each way with what makes its patch; the two erasures alone are made once."""
    first, second = pair["first"], pair["second"]
    shapes = {name: t.shape for name, t in tensors_of(host.root).items()}
    patches: dict[str, Any] = {}

    def alone(name: str) -> Any:
        if name not in patches:
            patches[name] = method()(host, request(host, name), seed=seed)
        return patches[name]

    def after(name: str, earlier: str) -> Any:
        below = alone(earlier)
        with below.applied(host):
            above = method()(host, request(host, name), seed=seed)
        return compose(below, replace(above, base=below.base), overlap="sum", shapes=shapes)

    yield "first", lambda: alone(first)
    yield "second", lambda: alone(second)
    yield "composed", lambda: compose(alone(first), alone(second), overlap="sum", shapes=shapes)
    yield "first then second", lambda: after(second, first)
    yield "second then first", lambda: after(first, second)


def _cell(record: Record, way: str) -> str:
    if way in record["refused"]:
        return record["refused"][way]
    groups: list[Mapping[str, str]] = record["groups"]
    shown = [_percent([g[way] for g in groups if g["concept"] == PAIR[which]]) for which in ("first", "second")]
    others = [g for g in groups if g["role"] != "target"]
    change = _percent([g[way] for g in others]) - _percent([g["before"] for g in others])
    return f"{shown[0]:.0f} % / {shown[1]:.0f} %; {change:+.0f}"


def _percent(bits: list[str]) -> float:
    return 100 * share(bits).value if "".join(bits) else 0.0


FIRST, SECOND = PAIR["first"], PAIR["second"]
HEADS = (f"{FIRST} alone", f"{SECOND} alone", "composed", f"{FIRST}, then {SECOND}", f"{SECOND}, then {FIRST}")
COLUMNS = {head: lambda s, by, way=way: _cell(by[s][0], way) for head, way in zip(HEADS, WAYS, strict=True)}
EXAM = Exam(
    name="together",
    verb="erase",
    cases=CASES,
    seeds=(0,),
    examine=examine,
    called=("first", "second"),
    part="interactions",
    label="pair",
    with_verb=True,
    columns=COLUMNS,
)
