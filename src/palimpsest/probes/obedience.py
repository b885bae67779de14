"""Whether the other words of a prompt still count beside a newcomer's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.ops.prompts import holds
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import classes_of, kind_of, word_of
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import rate

OBEDIENCE = "other words obeyed"


class Obedience(Probe):
    """How often a judge sees what the other words of a newcomer's prompts name, in percent, kind by kind of word.

    `before`: the untouched model, asked for the class in the newcomer's place with the same seed. Wilson's interval,
    Tango's for the paired change, McNemar's p, corrected by Benjamini and Hochberg over kinds; floor: how far two seed
    sets of the untouched model lie apart. Words are those that judges with classes "kind:word" know.
    """

    name = "obedience"
    makes = (OBEDIENCE,)
    subjects = ("newcomer",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each newcomer, judge and kind of word; `detail` names them."""
        found = []
        for judge in evidence.evaluators:
            readings = [
                _reading(evidence, judge, newcomer.name, kind, pairs)
                for newcomer, group, _ in evidence.plan.taught()
                for kind, pairs in named(evidence, judge, group).items()
            ]
            ps = statistics.benjamini_hochberg([r.p or 0.0 for r in readings])
            found += [replace(r, p=float(f"{p:.4g}")) for r, p in zip(readings, ps, strict=True)]
        return found


def of_kinds(evidence: Drawn, judge: str, group: int) -> dict[str, dict[int, str]]:
    """By kind, each class and its word: what a judge sees beside the concept of a group."""
    evaluator, concept = evidence.evaluators[judge], evidence.plan.groups[group].concept
    own = {kind_of(evaluator.classes[c]) for c in classes_of(evaluator, concept)} if concept is not None else set()
    kinds: dict[str, dict[int, str]] = {}
    for i, label in enumerate(evaluator.classes):
        if kind_of(label) not in own | {""}:
            kinds.setdefault(kind_of(label), {})[i] = word_of(label)
    return kinds


def named(evidence: Drawn, judge: str, group: int) -> dict[str, list[tuple[int, int]]]:
    """By kind, (row, class) of every word that a prompt of a group names."""
    plan, found = evidence.plan, {}
    for kind, words in of_kinds(evidence, judge, group).items():
        pairs = [
            (row, c)
            for row in plan.rows(group=group).tolist()
            for c, word in words.items()
            if holds(plan.shots[row].prompt, word)
        ]
        if pairs:
            found[kind] = pairs
    return found


def _reading(evidence: Drawn, judge: str, name: str, kind: str, pairs: list[tuple[int, int]]) -> Reading:
    plan = evidence.plan
    before, after = (_seen(evidence(which, judge, "present"), pairs) for which in ("before", "after"))
    twin = {row: i for i, row in enumerate(plan.twins)}
    again = _seen(evidence("other", judge, "present"), [(twin[row], c) for row, c in pairs if row in twin])
    found = rate(OBEDIENCE, before, after, looks=plan.looks, again=again)
    detail = {"kind": kind, "newcomer": name}
    return replace(
        found, concept=f"{kind} beside {name}", role="target", evaluator=evidence.evaluators[judge], detail=detail
    )


def _seen(present: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """(n,) bool: whether the class of each pair is seen in its row."""
    return torch.stack([present[row, c] for row, c in pairs]) if pairs else torch.zeros(0, dtype=torch.bool)
