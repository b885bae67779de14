"""What a merge kept: each change's own concept with that change alone, and in the merged model."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.drawn import ALONE, Drawn
from palimpsest.probes.evaluators import classes_of
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import percent, rate

RETENTION = "with the others"


class Retention(Probe):
    """In how many pictures that ask for what a change is about a judge sees it, in percent, after merging; `before`:
    by the model with that change alone, same prompts and seeds.

    Wilson's interval for the rate, Tango's for the paired change, McNemar's p, corrected by Benjamini and Hochberg over
    the targets. Floor: by how much two sets of so many pictures differ by chance at that rate. `detail["untouched"]`:
    the rate of the untouched model, from which the change went away; `detail["part"]`: which change it is.
    """

    name = "retention"
    makes = (RETENTION,)
    subjects = ("merged",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each target of each change and judge that knows it."""
        found: list[Reading] = []
        for judge, evaluator in evidence.evaluators.items():
            readings, at = [], 0
            for part, groups in evidence.plan.alone():
                for g in groups:
                    rows, concept = evidence.plan.rows(group=g), evidence.plan.groups[g].concept
                    here = slice(at, at + len(rows))
                    at += len(rows)
                    known = classes_of(evaluator, concept) if concept is not None else []
                    if concept is None or not known or not evidence.has(ALONE, judge, "present"):
                        continue
                    alone = evidence.present(judge, ALONE, known)[here]
                    untouched, merged = (evidence.present(judge, which, known)[rows] for which in ("before", "after"))
                    reading = rate(RETENTION, alone, merged, looks=evidence.plan.looks)
                    floor = percent(statistics.rate_floor(int(alone.sum()), len(alone), len(alone), statistics.LEVEL))
                    detail = {"part": part.name, "untouched": percent(float(untouched.float().mean()))}
                    reading = replace(reading, floor=floor, concept=concept.name, role="target", evaluator=evaluator)
                    readings.append(replace(reading, detail=detail))
            ps = statistics.benjamini_hochberg([r.p or 0.0 for r in readings])
            found += [replace(r, p=float(f"{p:.4g}")) for r, p in zip(readings, ps, strict=True)]
        return found
