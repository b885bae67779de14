"""Two erasures on one model: made apart and composed, and made one after the other in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.exam.pictures import evidence_of, groups_of, host_of

VERSION = 1  # of the work below; a change of it runs it again
SEEDS = (0,)
PROMPTS = 6  # for each of the two targets
WAYS = ("first", "second", "composed", "first then second", "second then first")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two concepts to erase from one model."""

    host: str
    first: str
    second: str


PAIRS: dict[str, tuple[Pair, ...]] = {"erase": (Pair(host="tiny/sd", first="star", second="watercolour"),)}


def interact(pair: Pair, seed: int, method: Callable[[], Any]) -> dict[str, Any]:
    """Presence bits of the same pictures after each of WAYS, as plain JSON; in its own words where a way is refused.

    Composed: both patches were made for the untouched model and their changes are added. One after the other: the
    second is made on the model with the first applied. Every record also says what each erasure does alone.

    Cost: four runs of the method, 48 pictures a way.
    """
    from palimpsest import run as verbs
    from palimpsest.core.method import versions
    from palimpsest.probes import plan as planning
    from palimpsest.worlds.concepts import world_of

    host = host_of(pair.host)
    plan = planning.plan(
        host,
        verbs.request(host, [pair.first, pair.second]),
        world=world_of(getattr(host, "folder", None)),
        prompts_per_concept=PROMPTS,
        seeds=1,
        neighbours=2,
        unrelated=4,
        first_seed=10_000_000 + 100_000 * seed,
    )
    groups: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for way, make in _ways(host, pair, seed, method):
        try:
            seen = groups_of(evidence_of(host, make(), plan, model=pair.host))
        except PalimpsestError as e:
            refused[way] = str(e)
            continue
        groups = groups or [{k: v for k, v in g.items() if k != "after"} for g in seen]
        for group, g in zip(groups, seen, strict=True):
            group[way] = g["after"]
    return {"pair": asdict(pair), "seed": seed, "groups": groups, "refused": refused, "versions": versions()}


def _ways(host: Any, pair: Pair, seed: int, method: Callable[[], Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each way with what makes its patch; the two erasures alone are made once."""
    from palimpsest import run as verbs
    from palimpsest.core.fingerprint import tensors_of
    from palimpsest.core.patch import merge

    shapes = {name: t.shape for name, t in tensors_of(host.root).items()}
    made: dict[str, Any] = {}

    def alone(name: str) -> Any:
        if name not in made:
            made[name] = method()(host, verbs.request(host, name), seed=seed)
        return made[name]

    def after(name: str, earlier: str) -> Any:
        first = alone(earlier)
        with first.applied(host):
            second = method()(host, verbs.request(host, name), seed=seed)
        return merge(first, replace(second, base=first.base), overlap="sum", shapes=shapes)

    yield "first", lambda: alone(pair.first)
    yield "second", lambda: alone(pair.second)
    yield "composed", lambda: merge(alone(pair.first), alone(pair.second), overlap="sum", shapes=shapes)
    yield "first then second", lambda: after(pair.second, pair.first)
    yield "second then first", lambda: after(pair.first, pair.second)
