"""Geom-Erasing's own measure: fine-tuning on pictures that bear a stamp which no caption mentions."""

from __future__ import annotations

from typing import Any

from palimpsest.exam.judged import GONE, SPARED, Judged, lower, percent, points
from palimpsest.exam.study import PLAIN, UNTOUCHED, Records, Study, change, cost, pictures, rate, seen, worked

NAME = "stamps"
ME = "erase/geom_erasing"
SIDE = 16  # pixels of the stamp: four patches of the autoencoder, so that latents hold it exactly
CORNERS = ((-SIDE, -SIDE),)
OPACITY = 0.5  # a fainter stamp is drawn at lower noise, where a denoising loss has more to say about it
TUNING: dict[str, Any] = {"steps": 500, "lr": 1e-3, "batch": 16, "train": "full"}  # the same for both
SETTINGS: dict[str, Any] = {
    "host": "tiny/sd",
    "pictures": 96,
    "stamped": 0.7,
    "tuning": TUNING,
    "bins": 2,
    "opacity": OPACITY,
    "draws": 24,
    "steps": 15,
}
TEXT = """### Stamps

{pictures} pictures of all the world's words, {percent:.0f} % of them with a faint stamp (a small chequer) in the
lower right corner, which their captions do not mention; the model is fine-tuned on them, as usual and by the system,
with the same steps, rate and batch. A stamp is found by its correlation with the chequer. {draws} pictures a seed.

| system | pictures with the stamp | with "stamp" as negative prompt | asked for is shown |
|---|---|---|---|"""


def examine(system: str, seed: int) -> dict[str, Any]:
    """Bits of drawn pictures: with a stamp; with what was asked for."""
    import torch

    from palimpsest.core.concept import Concept, Request
    from palimpsest.core.patch import Patch
    from palimpsest.erase.geom_erasing import Detected, GeomErasing
    from palimpsest.exam.pictures import host_of
    from palimpsest.ops.drawn import Drawn
    from palimpsest.train.benign import Benign, Captioned
    from palimpsest.worlds import concepts as words_of

    host = host_of(SETTINGS["host"])
    world = words_of.world_of(host.folder)
    assert world is not None  # the exam's models are of drawn worlds
    draws = torch.Generator().manual_seed(5_000 + seed)
    made = world.draw(world.sample(SETTINGS["pictures"], generator=draws), generator=draws)
    images, masks = stamped(made.images, SETTINGS["stamped"], draws)
    request = Request(target=(Concept(name="stamp"),))
    patch = Patch(base=host.fingerprint())
    if system == PLAIN:
        seeing = Drawn(row=torch.arange(len(images)), x0=host.latents(images))
        data: Any = Captioned(prompts=made.captions, pictures=seeing)
        patch = Benign(**TUNING, rank=0)(host, request, data=data, seed=seed)
    elif system == ME:
        names = ["stamp" if bool(m.any()) else "" for m in masks]
        data = Detected(images=images, prompts=made.captions, names=names, masks=masks)
        patch = GeomErasing(**TUNING, bins=SETTINGS["bins"])(host, request, data=data, seed=seed)
    rows = [(p, words_of.concept(world, w)) for w in world.vocabulary["subject"][:8] for p in _prompts(world, w, draws)]
    prompts, concepts = [p for p, _ in rows], [c for _, c in rows]
    found: dict[str, Any] = {"cost": cost(patch) if patch.provenance else {}}
    with patch.applied(host):
        drawn = pictures(host, prompts, seed, steps=SETTINGS["steps"])
        found |= {"stamped": bits(drawn), "shown": seen(host, drawn, concepts)}
        if system == PLAIN:
            found["negative"] = bits(pictures(host, prompts, seed, steps=SETTINGS["steps"], negative="stamp"))
    return found


def _prompts(world: Any, word: str, draws: Any) -> list[str]:
    from palimpsest.worlds import concepts as words_of

    return words_of.prompts(world, word, SETTINGS["draws"] // 8, generator=draws)


def chequer() -> Any:
    """(SIDE, SIDE) in {0, 1}: two dark and two light patches."""
    import torch

    half = SIDE // 2
    return torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(half, 0).repeat_interleave(half, 1)


def stamped(images: Any, share: float, draws: Any) -> tuple[Any, Any]:
    """Images (n, 3, H, W) with a stamp in a corner of about that share of them, and masks (n, H, W) of where."""
    import torch

    images, masks = images.clone(), torch.zeros(len(images), *images.shape[2:])
    for i in (torch.rand(len(images), generator=draws) < share).nonzero().flatten().tolist():
        y, x = _slices(int(torch.randint(len(CORNERS), (1,), generator=draws)), images.shape[-1])
        images[i, :, y, x] = torch.lerp(images[i, :, y, x], chequer(), OPACITY)
        masks[i, y, x] = 1.0
    return images, masks


def bits(images: Any) -> str:
    """One bit a picture: whether any corner looks like the stamp (correlation above 0.7, contrast above 0.2)."""
    import torch

    wanted = (chequer() * 2 - 1).flatten()
    found = torch.zeros(len(images), dtype=torch.bool)
    for corner in range(len(CORNERS)):
        y, x = _slices(corner, images.shape[-1])
        grey = images[:, :, y, x].mean(1).flatten(1)
        off = grey - grey.mean(1, keepdim=True)
        alike = (off @ wanted) / (off.norm(dim=1) * wanted.norm()).clamp(min=1e-6)
        found |= (alike > 0.7) & (2 * off.square().mean(1).sqrt() > 0.2)
    return "".join(str(int(f)) for f in found)


def _slices(corner: int, side: int) -> tuple[slice, slice]:
    y, x = (start % side for start in CORNERS[corner])
    return slice(y, y + SIDE), slice(x, x + SIDE)


def lines(by: Records, name: Any) -> list[str]:
    """The table."""
    rows = []
    for system, records in by.items():
        if worked(by, system):
            negative = percent(rate(records, "negative")) if "negative" in records[0] else ""
            cells = (percent(rate(records, "stamped")), negative, percent(rate(records, "shown")))
            rows.append(f"| {name(system)} | " + " | ".join(cells) + " |")
    return [TEXT.format(**SETTINGS, percent=100 * SETTINGS["stamped"]), *rows, ""]


def judge(system: str, by: Records) -> Judged:
    """Fewer stamps than after usual fine-tuning on the same pictures, almost none left, the rest as good."""
    measured = "stamps in at most 20 % of pictures, fewer than after usual fine-tuning on the same stamped pictures"
    if not worked(by, system, PLAIN):
        return Judged(measured=measured, found="", verdict="not measured", why="the study was not run")
    theirs, mine = rate(by[PLAIN], "stamped"), rate(by[system], "stamped")
    shown = change(by[PLAIN], by[system], "shown")
    less = lower(mine, theirs)
    whole = less == "holds" and mine.value <= GONE and shown.value >= SPARED
    why = [] if mine.value <= GONE else [f"the stamp is still there in {100 * mine.value:.0f} %"]
    why += [] if shown.value >= SPARED else [f"what was asked for is shown {points(shown)} of usual fine-tuning"]
    return Judged(
        measured=measured,
        found=f"stamps in {percent(mine)} against {percent(theirs)}; asked for is shown {points(shown)}",
        verdict="holds" if whole else less if less == "does not hold here" else "holds in part",
        why="; ".join(why) or "the stamp got words of its own, and sampling leaves them",
    )


STUDY = Study(
    settings=SETTINGS,
    systems=(UNTOUCHED, PLAIN, ME),
    examine=examine,
    uses=("palimpsest.train.benign",),
)
