"""Fine-tuning on pictures that bear a stamp which no caption mentions; Geom-Erasing claims to leave it out."""

from __future__ import annotations

from typing import Any

import torch

from palimpsest.core.concept import Concept, Request
from palimpsest.core.patch import Patch
from palimpsest.erase.geom_erasing import GeomErasing
from palimpsest.exam.case import Case, Exam, Records, cases
from palimpsest.exam.judged import GONE, SPARED, Judged, lower
from palimpsest.exam.pictures import PLAIN, UNTOUCHED, as_data, captioned, drawn, host_of, seen, world
from palimpsest.exam.rates import change, percent, points, rate
from palimpsest.exam.tables import shares
from palimpsest.train.benign import Benign
from palimpsest.worlds.concepts import concept, prompts

SIDE = 16  # pixels of the stamp: four patches of the autoencoder, so that latents hold it exactly
CORNER = slice(-SIDE, None)  # rows and columns: the lower right one
(CASE,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of drawn pictures: with a stamp; with what was asked for."""
    host = host_of(case["host"])
    glyphs, draws = world(host), torch.Generator().manual_seed(5_000 + seed)
    pictures = glyphs.draw(glyphs.sample(case["pictures"], generator=draws), generator=draws)
    images, masks = stamped(pictures.images, case["stamped"], case["opacity"], draws)
    request = Request(target=(Concept(name="stamp"),))
    patch = Patch(base=host.fingerprint())
    if system == PLAIN:
        plain = Benign(**case["tuning"], rank=0)
        patch = plain.tuned(host, request, captioned(host, images, pictures.captions), seed=seed)
    elif system != UNTOUCHED:
        data = {"pictures": as_data(images, pictures.captions, masks[:, None])}
        patch = GeomErasing(**case["tuning"], bins=case["bins"])(host, request, data=data, seed=seed)
    words = glyphs.vocabulary["subject"][:8]
    rows = [(p, w) for w in words for p in prompts(glyphs, w, case["draws"] // 8, generator=draws)]
    asked = [p for p, _ in rows]
    with patch.applied(host):
        images = drawn(host, asked, seed, steps=case["steps"])
        bits = {
            "cost": dict(patch.cost),
            "stamped": found(images),
            "shown": seen(host, images, [concept(glyphs, w) for _, w in rows]),
        }
        if system == PLAIN:
            bits["negative"] = found(drawn(host, asked, seed, steps=case["steps"], negative="stamp"))
    return bits


def chequer() -> Any:
    """(SIDE, SIDE) in {0, 1}: two dark and two light patches."""
    half = SIDE // 2
    return torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(half, 0).repeat_interleave(half, 1)


def stamped(images: Any, share: float, opacity: float, draws: Any) -> tuple[Any, Any]:
    """Images (n, 3, H, W) with a stamp in a corner of about that share of them, and masks (n, H, W) of where."""
    images, masks = images.clone(), torch.zeros(len(images), *images.shape[2:])
    for i in (torch.rand(len(images), generator=draws) < share).nonzero().flatten().tolist():
        torch.randint(1, (1,), generator=draws)  # which corner, when there were several: later draws stay as they were
        images[i, :, CORNER, CORNER] = torch.lerp(images[i, :, CORNER, CORNER], chequer(), opacity)
        masks[i, CORNER, CORNER] = 1.0
    return images, masks


def found(images: Any) -> str:
    """One bit a picture: whether the corner looks like the stamp (correlation above 0.7, contrast above 0.2)."""
    wanted = (chequer() * 2 - 1).flatten()
    grey = images[:, :, CORNER, CORNER].mean(1).flatten(1)
    off = grey - grey.mean(1, keepdim=True)
    alike = (off @ wanted) / (off.norm(dim=1) * wanted.norm()).clamp(min=1e-6)
    return "".join(str(int(f)) for f in (alike > 0.7) & (2 * off.square().mean(1).sqrt() > 0.2))


COLUMNS = {
    "pictures with the stamp": shares("stamped"),
    'with "stamp" as negative prompt': lambda s, by: percent(rate(by[s], "negative")) if s == PLAIN else "",
    "asked for is shown": shares("shown"),
}
BESIDE = (PLAIN,)
MEASURED = "stamps in at most 20 % of pictures, fewer than after usual fine-tuning on the same stamped pictures"


def judge(system: str, by: Records) -> Judged:
    """Fewer stamps than after usual fine-tuning on the same pictures, almost none left, the rest as good."""
    theirs, after = rate(by[PLAIN], "stamped"), rate(by[system], "stamped")
    shown = change(by[PLAIN], by[system], "shown")
    less = lower(after, theirs)
    whole = less == "holds" and after.value <= GONE and shown.value >= SPARED
    why = [] if after.value <= GONE else [f"the stamp is still there in {100 * after.value:.0f} %"]
    why += [] if shown.value >= SPARED else [f"what was asked for is shown {points(shown)} of usual fine-tuning"]
    return Judged(
        measured=MEASURED,
        found=f"stamps in {percent(after)} against {percent(theirs)}; asked for is shown {points(shown)}",
        verdict="holds" if whole else less if less == "does not hold here" else "holds in part",
        why="; ".join(why) or "the stamp got words of its own, and sampling leaves them",
    )


SYSTEMS = (UNTOUCHED, PLAIN, "erase/geom_erasing")
EXAM = Exam(name="stamps", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
