"""How far merged changes stand in each other's way, by their weights."""

from __future__ import annotations

from palimpsest.core.reading import Reading
from palimpsest.ops.interference import pairs
from palimpsest.probes.drawn import PAIRS, Drawn
from palimpsest.probes.evidence import Probe

CONFLICT = "cosine of two changes"


class Conflict(Probe):
    """The cosine of every two merged changes over all their entries; nothing is drawn for it.

    `detail`: the names of both; `opposed`, of the entries among the largest of both the share with opposite signs; and
    `shared`, how many of their largest entries are the same, in percent. What these say of pictures is a question of
    its own: the reading describes.
    """

    name = "conflict"
    makes = (CONFLICT,)
    subjects = ("merged",)
    needs = ("cosine", "opposed", "shared")

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for every two of the changes."""
        names = [part.name for part in evidence.plan.merged]
        columns = [evidence(PAIRS, name).tolist() for name in self.needs]
        return [
            Reading(
                name=CONFLICT,
                concept=f"{names[i]} and {names[j]}",
                value=cosine,
                n=1,
                detail={"parts": [names[i], names[j]], "opposed": 100 * opposed, "shared": 100 * shared},
            )
            for (i, j), cosine, opposed, shared in zip(pairs(len(names)), *columns, strict=True)
        ]
