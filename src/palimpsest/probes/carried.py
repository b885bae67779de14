"""What came along with a newcomer that nobody asked for: what most of its references share."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.ops.prompts import holds
from palimpsest.probes.drawn import REFERENCES, Drawn
from palimpsest.probes.evidence import Probe
from palimpsest.probes.obedience import of_kinds
from palimpsest.probes.rates import percent, rate

CARRIED = "came along"
MOST = 0.5  # share of the references that must show a word of a kind


class Carried(Probe):
    """How often what most references share is seen where the prompt leaves it open, in percent.

    For each kind of word that a judge sees, the word that is seen in most of a newcomer's references, if in half of
    them; read in the pictures whose prompt names no word of the kind. `before`: the untouched model, asked for the
    class with the same seed, which shows it by chance. Wilson's interval, Tango's for the paired change, McNemar's p,
    corrected by Benjamini and Hochberg over kinds.
    """

    name = "carried"
    makes = (CARRIED,)
    subjects = ("newcomer",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each newcomer, judge and kind; `detail` names them, and has the word's share of
        the references."""
        found = []
        for judge in evidence.evaluators:
            readings = []
            for newcomer, group, rows in evidence.shown(judge, "present"):
                given = evidence(REFERENCES, judge, "present")[list(rows)].double().mean(0)
                for kind, words in of_kinds(evidence, judge, group).items():
                    top = max(words, key=lambda c: float(given[c]))
                    if float(given[top]) >= MOST:
                        share = percent(float(given[top]))
                        detail = {"kind": kind, "word": words[top], "newcomer": newcomer.name, "of references": share}
                        reading = _open(evidence, judge, group, list(words.values()), top)
                        readings += (
                            []
                            if reading is None
                            else [replace(reading, concept=f"{words[top]} with {newcomer.name}", detail=detail)]
                        )
            ps = statistics.benjamini_hochberg([r.p or 0.0 for r in readings])
            found += [replace(r, p=float(f"{p:.4g}")) for r, p in zip(readings, ps, strict=True)]
        return found


def _open(evidence: Drawn, judge: str, group: int, words: list[str], top: int) -> Reading | None:
    """A class in the pictures of a group whose prompts name none of the words; None where there are none."""
    plan = evidence.plan
    rows = [r for r in plan.rows(group=group).tolist() if not any(holds(plan.shots[r].prompt, w) for w in words)]
    if not rows:
        return None
    before, after = (evidence.present(judge, which, [top])[rows] for which in ("before", "after"))
    found = rate(CARRIED, before, after, looks=plan.looks)
    return replace(found, role="target", evaluator=evidence.evaluators[judge])
