"""What the studies and the main exam say about one system against another, as a section of docs/systems.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.exam import backfire, debiasing, editing, letters, stamps, studies
from palimpsest.exam.judged import Summaries, Verdict
from palimpsest.exam.judged import lower as _lower
from palimpsest.exam.judged import percent as _percent
from palimpsest.exam.judged import points as _points
from palimpsest.exam.study import STAND_INS, by_system
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval

HEAD = """## Comparisons that papers draw

Each is measured with {seeds} seeds; *holds* needs intervals that are apart.

| the paper claims | found | verdict |
|---|---|---|"""

ATTACK = """### Under attack

{concept} is erased from {host}; an attacker who has the edited weights looks for three words in embedding space that
bring it back when they stand before the prompt. *Never saw it*: the same attack on a model that was trained without
the concept, so what it shows was taught by the attack. {prompts} prompts a seed.

| system | target shown, asked plainly | under attack |
|---|---|---|"""

MANY = """### Many concepts at once

Identities of {host}, erased in one run each; {others} others, which the method was not told to keep, are asked for
beside them. *H*: the harmonic mean of the share of targets gone and of others kept. ESD takes its own budget of steps
however many concepts there are; MACE trains for each. Where the closed forms take others along, the likely cause is the
text space: 128 dimensions have few to spare for the states of 20 names among 64.

| system | {heads} |
|---|{rules}|"""


def section(results: Path, main: Summaries) -> list[str]:
    """The lines of the section; comparisons that were not measured say so."""
    attack, many = (by_system(studies.read(results, name)) for name in ("attack", "many"))
    lines = [HEAD.format(seeds=len(studies.SEEDS))]
    for claim, found, verdict in (
        ("RECE withstands attacks that bring concepts back after UCE", *_less_under_attack(attack, "rece", "uce")),
        ("AdvUnlearn withstands attacks that break ESD", *_less_under_attack(attack, "adv_unlearn", "esd")),
        *(
            (f"MACE beats ESD at {count} concepts", *_better_at_many(many, "mace", "esd", str(count)))
            for count in studies.MANY["counts"]
        ),
        ("SPM harms neighbours less than ESD", *_spares_more(main, "spm", "esd")),
    ):
        lines.append(f"| {claim} | {found} | **{verdict}** |")
    lines.append("")
    if attack:
        rows = [_attack_row(system, records) for system, records in attack.items()]
        lines += [ATTACK.format(**studies.ATTACK), *rows, ""]
    if many:
        heads = [f"{n} targets still shown | others shown | H" for n in studies.MANY["counts"]]
        rules = "|".join(["---"] * (3 * len(heads)))
        lines += [MANY.format(**studies.MANY, heads=" | ".join(heads), rules=rules)]
        lines += [_many_row(system, records) for system, records in many.items()] + [""]
    for study in (debiasing, stamps, backfire, letters, editing):
        by = by_system(studies.read(results, study.NAME))
        if by:
            lines += study.lines(by, _name)
    return lines


def _refused(records: Sequence[Mapping[str, Any]]) -> str:
    return next((r["refused"] for r in records if "refused" in r), "")


def _rate(bits: Sequence[str]) -> Interval:
    every = "".join(bits)
    return statistics.wilson(every.count("1"), len(every))


def _less_under_attack(by: Mapping[str, Sequence[Mapping[str, Any]]], mine: str, rival: str) -> tuple[str, Verdict]:
    pair = [by.get(f"erase/{name}", ()) for name in (mine, rival)]
    if not all(pair) or any(map(_refused, pair)):
        return "", "not measured"
    a, b = (_rate([r["attacked"] for r in records]) for records in pair)
    return f"target {_percent(a)} against {_percent(b)} under attack", _lower(a, b)


def _better_at_many(
    by: Mapping[str, Sequence[Mapping[str, Any]]], mine: str, rival: str, count: str
) -> tuple[str, Verdict]:
    pair = [by.get(f"erase/{name}", ()) for name in (mine, rival)]
    if not all(pair) or any(map(_refused, pair)):
        return "", "not measured"
    a, b = (harmonic(*_shares(records, count)) for records in pair)
    verdict: Verdict = "holds" if a.low > b.high else "holds in part" if a.value > b.value else "does not hold here"
    return f"H {_percent(a)} against {_percent(b)}", verdict


def _spares_more(main: Summaries, mine: str, rival: str) -> tuple[str, Verdict]:
    if not {f"erase/{mine}", f"erase/{rival}"} <= set(main):
        return "", "not measured"
    a, b = (main[f"erase/{name}"][""].neighbours for name in (mine, rival))
    verdict: Verdict = "holds" if a.low > b.high else "holds in part" if a.value > b.value else "does not hold here"
    return f"neighbours {_points(a)} against {_points(b)}, in the main exam", verdict


def _shares(records: Sequence[Mapping[str, Any]], count: str) -> tuple[Interval, Interval]:
    """Of targets and of others that are still shown."""
    sets = [r["counts"][count] for r in records]
    return _rate([s["targets"] for s in sets]), _rate([s["others"] for s in sets])


def harmonic(targets: Interval, others: Interval) -> Interval:
    """Of the shares of targets gone and others kept; its ends take the worst and the best ends of both."""

    def mean(gone: float, kept: float) -> float:
        return 0.0 if gone + kept == 0 else 2 * gone * kept / (gone + kept)

    return Interval(
        mean(1 - targets.value, others.value),
        mean(1 - targets.high, others.low),
        mean(1 - targets.low, others.high),
    )


def _name(system: str) -> str:
    return f"*{system}*" if system in (studies.NEVER, *STAND_INS) else f"{catalog.find(system).card.name} `{system}`"


def _attack_row(system: str, records: Sequence[Mapping[str, Any]]) -> str:
    if _refused(records):
        return f"| {_name(system)} | it refuses: {_refused(records)} | |"
    plain, attacked = (_percent(_rate([r[k] for r in records])) for k in ("plain", "attacked"))
    return f"| {_name(system)} | {plain} | {attacked} |"


def _many_row(system: str, records: Sequence[Mapping[str, Any]]) -> str:
    if _refused(records):
        return f"| {_name(system)} | it refuses: {_refused(records)} |" + " |" * (3 * len(studies.MANY["counts"]) - 1)
    cells = []
    for count in map(str, studies.MANY["counts"]):
        targets, others = _shares(records, count)
        cells += [_percent(targets), _percent(others), _percent(harmonic(targets, others))]
    return f"| {_name(system)} | " + " | ".join(cells) + " |"
