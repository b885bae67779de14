"""The over-erasure alarm: pictures that are one colour, noise, or nearly the same as another prompt's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.plan import ROLES

KINDS = ("fine", "one colour", "noise", "same as another")
_FLAT = 4.0  # grey levels of deviation below which a picture is one colour
_ALIKE = 5.0  # grey levels between two small copies below which two prompts gave the same picture
_NOISE = 0.25  # correlation of neighbouring pixels below which a picture is noise; drawings and photographs exceed 0.5


class Collapse:
    """The share of pictures that are no longer pictures, in percent, before and after.

    One colour: root mean square deviation from the mean colour under 4 grey levels. Noise: neighbouring pixels
    correlate less than 0.25. Same as another: the picture of another prompt is within 5 grey levels at 16 x 16.
    Interval: Wilson; p: McNemar's exact test, corrected by Holm over the roles.
    """

    name = "collapse"
    from_receipt = True

    def measure(self, evidence: Evidence) -> dict[str, Tensor]:
        """name -> (n,) index into `KINDS`."""
        shots = evidence.plan.shots
        prompts = {p: i for i, p in enumerate(dict.fromkeys(s.prompt for s in shots))}
        of = torch.tensor([prompts[s.prompt] for s in shots])
        return {
            f"collapse, {which}": evidence.measured(
                f"collapse, {which}", lambda w=which: kinds(evidence.pictures[w], of).double()
            )
            for which in ("before", "after")
        }

    def run(self, evidence: Evidence) -> list[Reading]:
        """One reading for each role."""
        values = self.measure(evidence)
        found = []
        for role in ROLES:
            rows = evidence.plan.rows(role=role)
            if not len(rows):
                continue
            before, after = values["collapse, before"][rows], values["collapse, after"][rows]
            n = len(rows)
            level = 1 - (1 - statistics.LEVEL) / evidence.plan.looks
            rate = statistics.wilson(int((after > 0).sum()), n, level)
            change = statistics.paired((before > 0).numpy(), (after > 0).numpy(), level)
            found.append(
                Reading(
                    name="collapse",
                    role=role,
                    value=round(100 * rate.value, 3),
                    low=round(100 * rate.low, 3),
                    high=round(100 * rate.high, 3),
                    n=n,
                    unit="%",
                    higher_is_better=False,
                    before=round(100 * float((before > 0).float().mean()), 3),
                    floor=round(100 * statistics.rate_floor(int((before > 0).sum()), n, n, level), 3),
                    p=min(1.0, evidence.plan.looks * statistics.mcnemar((before > 0).numpy(), (after > 0).numpy())),
                    detail={
                        "change": {k: round(100 * v, 3) for k, v in change._asdict().items()},
                        **{kind: int((after == i).sum()) for i, kind in enumerate(KINDS) if i},
                    },
                )
            )
        ps = statistics.holm([r.p if r.p is not None else 1.0 for r in found])
        return [replace(r, p=float(f"{p:.4g}")) for r, p in zip(found, ps, strict=True)]


def kinds(pictures: Tensor, prompts: Tensor) -> Tensor:
    """(n,) int64 index into `KINDS` for pictures (n, 3, H, W) uint8 and the number of each one's prompt (n,)."""
    images = pictures.float()
    found = torch.zeros(len(images), dtype=torch.long)
    small = F.interpolate(images, (16, 16), mode="area").flatten(1)
    apart = torch.cdist(small, small) / small.shape[1] ** 0.5
    apart[prompts[:, None] == prompts[None]] = float("inf")
    found[apart.amin(1) < _ALIKE] = 3
    found[_correlation(images.mean(1)) < _NOISE] = 2
    spread = (images - images.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()
    found[spread < _FLAT] = 1
    return found


def _correlation(grey: Tensor) -> Tensor:
    """(n,) correlation of neighbouring pixels of (n, h, w), along both axes."""
    centred = grey - grey.mean((1, 2), keepdim=True)
    across = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2))
    down = (centred[:, 1:] * centred[:, :-1]).mean((1, 2))
    return (across + down) / 2 / centred.square().mean((1, 2)).clamp(min=1e-6)
