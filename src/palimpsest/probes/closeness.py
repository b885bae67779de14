"""Whether the neighbours are neighbours to the eye as well: how alike their pictures are to the target's."""

from __future__ import annotations

from palimpsest.core.reading import Reading
from palimpsest.ops.neighbours import alike
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe


class Closeness(Probe):
    """Cosine of each concept's mean image embedding with the target's, in the untouched model's pictures.

    Embeddings are the judge's features, less the mean of all concepts. The plan chose neighbours by the model's text
    embeddings before anything was drawn; this says in pictures how near they are, and whether an unrelated concept
    lies nearer. A description without a test.
    """

    name = "closeness"
    makes = ("closeness",)
    subjects = ("generator",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each concept but the targets and each judge with features, nearest first; of several targets
        the nearest one counts."""
        plan, found = evidence.plan, []
        for judge in evidence.featured():
            features = evidence("before", judge, "features")
            vectors = {g.name: features[plan.rows(group=i)] for i, g in enumerate(plan.groups) if g.concept is not None}
            if len(vectors) < 3:  # of two centred means one is minus the other
                continue
            role = {g.name: g.role for g in plan.groups if g.concept is not None}
            near: dict[str, tuple[float, str]] = {}
            for target in plan.request.target:
                for name, cosine in alike(vectors, target.name):
                    if role[name] != "target":
                        near[name] = max(near.get(name, (-2.0, "")), (cosine, target.name))
            found += [
                Reading(
                    name="closeness",
                    concept=name,
                    role=role[name],
                    value=round(cosine, 3),
                    n=len(vectors[name]),
                    evaluator=evidence.evaluators[judge],
                    detail={"target": target, "rank": rank, "of": len(near)},
                )
                for rank, (name, (cosine, target)) in enumerate(sorted(near.items(), key=lambda e: -e[1][0]), start=1)
            ]
        return found
