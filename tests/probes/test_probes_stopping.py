"""What an audit calls changed and unchanged, simulated in the bits that a judge would read: no model is run.

The untouched model against itself is called unchanged; a loss of ten points is called a change at the planned number
of pictures; looking early raises no more false alarms than looking once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import Generator
from scipy import stats

from evidence_fixtures import Reader, Scribe, damaging, erased, request, small_plan
from palimpsest.core.reading import Change, Evaluator, Reading
from palimpsest.ops import statistics
from palimpsest.probes.collapse import Collapse
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.forecast import Speed, lines, minutes, needed, time_host
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.groups import Group
from palimpsest.probes.plan import Plan
from palimpsest.probes.presence import Presence
from palimpsest.probes.stopping import LOOKS, collect_until_clear, unclear
from palimpsest.probes.verdict import verdict
from palimpsest.receipt.subjects import generator
from palimpsest.worlds.concepts import concept
from palimpsest.worlds.glyphs import GLYPHS

NEIGHBOURS = ("moon", "heart", "house", "fish")
CLASSES = tuple(f"subject:{w}" for w in ("star", *NEIGHBOURS))


def plan_of(pictures: int, prompts: int = 10) -> Plan:
    """A target and four neighbours with so many pictures each."""
    groups = [
        Group(
            role="target" if i == 0 else "neighbour",
            concept=concept(GLYPHS, name),
            prompts=tuple(f"{name} {p}" for p in range(prompts)),
            seeds=-(-pictures // prompts),
        )
        for i, name in enumerate(("star", *NEIGHBOURS))
    ]
    return Plan(request=request("star"), groups=tuple(groups))


def bits(plan: Plan, rng: Generator, rate: float, lost: Mapping[str, float], wobble: float = 0.0) -> Drawn:
    """What a judge reads: each picture shows what was asked for at `rate`; an edit takes `lost[name]` of them away,
    and `wobble` of all pictures flip by chance."""
    group = np.array([s.group for s in plan.shots])
    before = rng.random(len(group)) < rate
    share = np.array([lost.get(g.name, 0.0) for g in plan.groups])[group]
    after = np.where(rng.random(len(group)) < share / rate, False, before) ^ (rng.random(len(group)) < wobble)
    twins = np.array([s.group for s in plan.twin_shots])
    sets = {"before": (group, before), "after": (group, after), "other": (twins, rng.random(len(twins)) < rate)}
    seen = {f"{k}/reader/present": _flags(g, hits) for k, (g, hits) in sets.items()}
    evaluator = Evaluator(name="reader", version="1", threshold=0.5, classes=CLASSES)
    return Drawn(plan=plan, measures=seen, evaluators={"reader": evaluator})


def _flags(group: np.ndarray, hits: np.ndarray) -> torch.Tensor:
    flags = np.zeros((len(group), len(CLASSES)), dtype=bool)
    flags[np.arange(len(group)), group] = hits
    return torch.from_numpy(flags)


def single(evidence: Drawn) -> list[Reading]:
    return [r for r in Presence().run(evidence) if r.concept]


@pytest.mark.parametrize("rate", [0.97, 0.6])
def test_the_untouched_model_against_itself_is_called_unchanged(rate: float) -> None:
    plan, rng = plan_of(20), np.random.default_rng(1)
    calm = sum(all(verdict(r) == "unchanged" for r in Presence().run(bits(plan, rng, rate, {}))) for _ in range(100))
    assert calm >= 95


def test_an_edit_that_only_shuffles_seeds_is_hardly_ever_called_a_change() -> None:
    # The hardest null: "after" is the untouched model under other seeds, so that pairs share their prompt only.
    plan, rng = plan_of(60), np.random.default_rng(2)
    alarms = 0
    for _ in range(100):
        one, other = bits(plan, rng, 0.9, {}), bits(plan, rng, 0.9, {})
        seen = {**one.measures, "after/reader/present": other("before", "reader", "present")}
        alarms += any(verdict(r) == "changed" for r in single(replace(one, measures=seen)))
    assert alarms <= 5


def test_ten_points_lost_by_one_neighbour_are_called_a_change_at_the_planned_number() -> None:
    plan, rng = plan_of(needed(0.10, len(NEIGHBOURS))), np.random.default_rng(3)
    found, false = 0, 0
    for _ in range(100):
        readings = single(bits(plan, rng, 0.97, {"star": 0.95, "heart": 0.10}, wobble=0.02))
        called = {r.concept for r in readings if verdict(r) == "changed"}
        found += "heart" in called
        false += bool(called - {"star", "heart"})
    assert found >= 90
    assert false <= 10  # the false discovery rate is 5 % of the discoveries, of which there is one among neighbours


@pytest.mark.parametrize("change", [0.02, 0.1])
def test_the_planned_number_is_the_smallest_that_does(change: float) -> None:
    n = needed(change, 4)
    disagree = change + 0.02
    assert statistics.power(n, change, disagree=disagree, tests=4) >= 0.9
    assert statistics.power(int(0.93 * n), change, disagree=disagree, tests=4) < 0.9


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.05), (0.25, 0.25), (0.12, 0.02), (0.3, 0.1), (0.9, 0.0)])
@pytest.mark.parametrize("pictures", [60, 200])
def test_stopping_at_any_look_keeps_the_promises(lost: float, gained: float, pictures: int) -> None:
    rng, trials = np.random.default_rng(4), 4000
    at = [-(-pictures * k // LOOKS) for k in range(1, LOOKS + 1)]
    flips = rng.multinomial(1, [lost, gained, 1 - lost - gained], (trials, pictures))[..., :2].cumsum(1)
    going, alarms, covers, drawn = np.ones(trials, bool), 0, 0, 0
    for n in at:
        down, up = flips[:, n - 1].T
        p = LOOKS * np.minimum(1, 2 * stats.binom.cdf(np.minimum(up, down), up + down, 0.5))
        low, high = statistics.tango(up, down, n, 1 - (1 - statistics.LEVEL) / LOOKS)
        clear = (p < 0.05) | (np.maximum(abs(low), abs(high)) <= 0.1) | (n == at[-1])
        stops, going = going & clear, going & ~clear
        alarms += (stops & (p < 0.05)).sum()
        covers += (stops & (low <= gained - lost) & (gained - lost <= high)).sum()
        drawn += n * stops.sum()
    assert covers / trials >= 0.945
    if lost == gained:
        assert alarms / trials <= 0.05
    if lost > 0.2 > gained and (lost > 0.5 or pictures == 200):
        assert drawn / trials < 0.8 * pictures, "a clear answer saves pictures"


def test_whole_audits_that_stop_early_raise_few_false_alarms() -> None:
    # Presence and collapse of an edit that only shuffles seeds: the rule of `unclear` on whole audits, look by look.
    rng, trials, alarms, stopped = np.random.default_rng(5), 40, {"presence": 0, "collapse": 0}, 0
    whole = replace(plan_of(280), look=LOOKS, looks=LOOKS)
    at = {s: i for i, s in enumerate(whole.shots)} | {s: i for i, s in enumerate(whole.twin_shots)}
    parts = [replace(whole, look=look) for look in range(1, LOOKS + 1)]
    rows = [([at[s] for s in p.shots], [at[s] for s in p.twin_shots]) for p in parts]
    for _ in range(trials):
        one, other = (bits(whole, rng, 0.95, {}) for _ in range(2))
        reads = {k: one(k, "reader", "present") for k in ("before", "other")}
        reads["after"] = other("before", "reader", "present")
        odd = {w: torch.from_numpy(rng.random(len(whole.shots)) < 0.03).double() for w in ("before", "after")}
        for plan, (mine, twins) in zip(parts, rows, strict=True):
            kept = {k: v[twins if k == "other" else mine] for k, v in reads.items()}
            seen = {f"{k}/reader/present": v for k, v in kept.items()}
            flat = {f"{w}/collapse": v[mine] for w, v in odd.items()}
            evidence = replace(bits(plan, rng, 1.0, {}), measures=seen | flat)
            found = [*Presence().run(evidence), *Collapse().run(evidence)]
            if not unclear(found):
                break
        stopped += plan.look < LOOKS
        for name in alarms:
            alarms[name] += any(r.name == name and verdict(r) == "changed" for r in found)
    assert max(alarms.values()) <= 0.05 * trials
    assert stopped > trials / 2


def test_a_collapse_that_is_not_clear_keeps_an_audit_going() -> None:
    change = Change(value=0.0, low=-4.0, high=12.0)
    row = Reading(name="collapse", role="target", value=3.0, p=0.3, floor=9.0, change=change)
    assert unclear([row]) == [row]
    assert unclear([replace(row, p=0.01)]) == unclear([replace(row, role="empty")]) == unclear([row], margin=12.0) == []


def test_every_interval_allows_for_the_looks() -> None:
    evidence = erased()
    early = replace(evidence, plan=replace(evidence.plan, look=LOOKS, looks=LOOKS))
    for once, often in zip(*map(generator.Generator.readings, (evidence, early)), strict=True):
        assert (once.name, once.concept, once.role) == (often.name, often.concept, often.role)
        if once.p is not None:
            assert often.p is not None
            assert often.p == 1.0 or often.p > once.p
        if once.high > once.low > 0:
            assert often.low < once.low or often.high > once.high, once.name


def test_a_clear_audit_stops_early_and_draws_less() -> None:
    host = Scribe()
    plan = small_plan(host, prompts=4, seeds=4, neighbours=1, unrelated=1)
    kept = Gallery()
    found = collect_until_clear(host, host, plan, [Reader()], gallery=kept, margin=70.0)
    assert found.plan.look < LOOKS
    assert host.drawn == found.plan.pictures() < plan.pictures()
    whole = collect_until_clear(Scribe(), damaging(host), plan, [Reader()], margin=0.0)
    assert whole.plan.look == LOOKS, "a margin that no interval can meet never stops"


def test_without_a_judge_nothing_is_clear() -> None:
    host = Scribe()
    assert collect_until_clear(host, host, small_plan(host), []).plan.look == LOOKS


def test_the_plan_says_what_a_small_change_needs_and_how_long_it_takes() -> None:
    host = Scribe()
    plan = small_plan(host)
    speed = time_host(host, plan)
    assert speed.step >= 0
    assert 0 < speed.seconds(10, 20) < 10
    said = "\n".join(lines(plan, Speed(fixed=0.5, step=0.1, batch=16)))
    assert f"{needed(0.02)} pictures" in said
    assert "seeds)" in said
    assert "ms a picture" in said
    assert "cosine" in said
    assert minutes(plan, Speed(fixed=1.0, step=0.0, batch=1)) == pytest.approx(plan.pictures() / 60)
