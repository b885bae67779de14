"""ACE's own measure: whether editing a picture of something else brings an erased concept in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palimpsest.exam.judged import GONE, SPARED, Judged, lower, percent, points
from palimpsest.exam.study import UNTOUCHED, Records, Study, change, cost, rate, seen, worked

NAME = "editing"
ME, RIVALS = "erase/ace", ("erase/esd", "erase/uce")
SETTINGS: dict[str, Any] = {
    "host": "tiny/sd",
    "concept": "star",
    "pictures": 16,
    "others": ("moon", "heart", "house", "circle"),
    "strength": 0.75,
    "steps": 15,
    "guidance": 3.0,
}
TEXT = """### Editing

Drawn pictures of other subjects are edited towards "{concept}" by noising them to {percent:.0f} % of the way and
sampling from there with guidance {guidance} (SDEdit). *Other edits*: the same pictures, edited towards {others}.
{pictures} pictures a seed each.

| system | edited pictures that show {concept} | other edits that show what was asked for |
|---|---|---|"""


def examine(system: str, seed: int) -> dict[str, Any]:
    """Bits of edited pictures: towards the erased concept, and towards others."""
    import torch

    from palimpsest import run as verbs
    from palimpsest.core.patch import Patch
    from palimpsest.exam.pictures import host_of
    from palimpsest.exam.work import method_of
    from palimpsest.worlds import concepts as words_of

    host = host_of(SETTINGS["host"])
    world, target = words_of.world_of(host.folder), SETTINGS["concept"]
    assert world is not None  # the exam's models are of drawn worlds
    n, others = SETTINGS["pictures"], SETTINGS["others"]
    draws = torch.Generator().manual_seed(9_000 + seed)
    subjects = world.vocabulary["subject"]
    # Tree, fish, ...: neither the target nor what the other edits ask for.
    pool = [i for i, w in enumerate(subjects[:20]) if w not in (target, *others)]
    chosen = torch.tensor([pool[int(torch.randint(len(pool), (1,), generator=draws))] for _ in range(n)])
    images = world.draw({"subject": chosen}, generator=draws).images
    patch = Patch(base=host.fingerprint())
    if system != UNTOUCHED:
        patch = method_of(system)(host, verbs.request(host, target), seed=seed)
    found: dict[str, Any] = {"cost": cost(patch) if patch.provenance else {}}
    for what, words in (("target", [target] * n), ("others", [others[i % len(others)] for i in range(n)])):
        with patch.applied(host):
            prompts = [world.prompt(subject=w) for w in words]
            out = edited(host, images, prompts, torch.Generator().manual_seed(9_500 + seed))
        found[what] = seen(host, out, [words_of.concept(world, w) for w in words])
    return found


def edited(host: Any, images: Any, prompts: Sequence[str], draws: Any) -> Any:
    """Images (n, 3, H, W) noised to `strength` of the training times and sampled back towards the prompts.

    Steps are DDIM's:  x <- alpha' x0 + sigma' (x - alpha x0) / sigma,  x0 the guided prediction.
    Source: Meng et al., "SDEdit", ICLR 2022, arXiv 2108.01073.
    """
    import torch

    from palimpsest.core.host import Cond
    from palimpsest.ops.guidance import classifier_free

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        every = host.times(1000, torch.Generator().manual_seed(0)).sort().values
        at = torch.linspace(SETTINGS["strength"] * (len(every) - 1), 0, SETTINGS["steps"]).long()
        times = every[at]
        conds = Cond.cat([host.null(len(images)), host.encode(list(prompts))])
        x0, n = host.latents(images).float(), len(images)
        noise = torch.randn(x0.shape, generator=draws)
        for t in times:
            alpha, sigma = host.noise(t[None])
            x = alpha * x0 + sigma * noise
            null, cond = host.denoise(torch.cat([x, x]), t.expand(2 * n), conds).float().chunk(2)
            x0 = classifier_free(null, cond, SETTINGS["guidance"])
            noise = (x - alpha * x0) / sigma
        return host.pixels(x0).float()


def lines(by: Records, name: Any) -> list[str]:
    """The table."""
    said = {**SETTINGS, "others": ", ".join(SETTINGS["others"])}
    rows = [
        f"| {name(s)} | {percent(rate(rs, 'target'))} | {percent(rate(rs, 'others'))} |"
        for s, rs in by.items()
        if worked(by, s)
    ]
    return [TEXT.format(**said, percent=100 * SETTINGS["strength"]), *rows, ""]


def judge(system: str, by: Records) -> Judged:
    """Editing does not bring the concept in, and other edits still work; said beside what ESD and UCE do."""
    measured = "editing brings the concept in in at most 20 % of pictures, other edits losing at most 5 points"
    if not worked(by, system, UNTOUCHED, *RIVALS):
        return Judged(measured=measured, found="", verdict="not measured", why="the study was not run")
    was, mine = rate(by[UNTOUCHED], "target"), rate(by[system], "target")
    theirs = {r: rate(by[r], "target") for r in RIVALS}
    other = change(by[UNTOUCHED], by[system], "others")
    whole = mine.value <= GONE and other.value >= SPARED
    against = ", ".join(f"{percent(t)} after {r.split('/')[1].upper()}" for r, t in theirs.items())
    why = [] if mine.value <= GONE else [f"editing still brings it into {100 * mine.value:.0f} %"]
    no_less = [r.split("/")[1].upper() for r, t in theirs.items() if lower(mine, t) != "holds"]
    why += [f"not surely less than {' and '.join(no_less)}"] if no_less else ["surely less than after ESD and UCE"]
    return Judged(
        measured=measured,
        found=f"edited pictures that show it: {percent(mine)}; {against}; untouched {percent(was)}",
        verdict="holds" if whole else "holds in part" if lower(mine, was) == "holds" else "does not hold here",
        why="; ".join([*why, f"other edits {points(other)}"]),
    )


STUDY = Study(settings=SETTINGS, systems=(UNTOUCHED, *RIVALS[::-1], ME), examine=examine)
