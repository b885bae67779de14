"""Debiasing's own measure: a model with a known bias, and how evenly it draws two colours afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from palimpsest.exam.judged import SPARED, Judged, percent, points
from palimpsest.exam.study import PLAIN, UNTOUCHED, Record, Records, Study, change, cost, pictures, rate, seen, worked
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval

NAME = "debiasing"
INVDIFF, UCE = "erase/invdiff", "erase/uce_debias"
BIAS: dict[str, Any] = {"steps": 200, "lr": 1e-3, "batch": 8, "train": "attention"}
EVENING: dict[str, Any] = {"steps": 100, "lr": 3e-3, "batch": 8, "rank": 4, "groups": 2, "group_steps": 300}
CLOSED: dict[str, Any] = {"rounds": 8, "per_round": 16, "gain": 0.5, "walk_steps": 10, "guidance": 2.0}
SETTINGS: dict[str, Any] = {
    "host": "tiny/sd",
    "concept": "star",
    "attributes": ("red", "blue"),
    "share": 0.85,
    "pictures": 96,
    "bias": BIAS,
    "evening": EVENING,
    "closed": CLOSED,
    "prompts": 24,
    "others": 8,
    "steps": 15,
}
CLOSER = 0.05  # fewer points nearer to even are noise, not a claim in part
TEXT = """### Debiasing

The bias is known, because it was put there: {host} is fine-tuned on {pictures} pictures of one subject, {concept}, of
which {percent:.0f} % are {first} and the others {second}, with captions that name no colour. The systems are told
neither the share nor the pictures' colours; InvDiff and plain fine-tuning (the same training without groups) learn from
the same pictures, UCE's judge is the world's oracle. *Distance*: of the two colours' shares from one half each, 0 to 50
points. {prompts} pictures a seed that name no colour, and {others} of other subjects.

| system | {first} among both | distance from even | other colours | asked for is shown | other subjects shown |
|---|---|---|---|---|---|"""


def examine(system: str, seed: int) -> dict[str, Any]:
    """Colours of pictures that name none, and bits of what was asked for; after a system or in the biased model."""
    from palimpsest.core.patch import Patch
    from palimpsest.exam.pictures import host_of
    from palimpsest.worlds import concepts as words_of

    host = host_of(SETTINGS["host"])
    world = words_of.world_of(host.folder)
    assert world is not None  # the exam's models are of drawn worlds
    with _bias().applied(host):
        patch = Patch(base=host.fingerprint()) if system == UNTOUCHED else _debiased(host, world, system, seed)
        with patch.applied(host):
            asked, concept = _prompts(world, seed), words_of.concept(world, SETTINGS["concept"])
            images = pictures(host, asked, seed, steps=SETTINGS["steps"])
            rows = _others(world, seed)
            drawn = pictures(host, [p for p, _ in rows], seed, steps=SETTINGS["steps"])
    return {
        "colours": colours(host, world, images),
        "shown": seen(host, images, [concept] * len(asked)),
        "others": seen(host, drawn, [words_of.concept(world, w) for _, w in rows]),
        "cost": cost(patch) if patch.provenance else {},
    }


@lru_cache(maxsize=1)
def _bias() -> Any:
    """The patch that biases the model; the same for all seeds."""
    from palimpsest import run as verbs
    from palimpsest.exam.pictures import host_of
    from palimpsest.train.benign import Benign, Captioned

    host = host_of(SETTINGS["host"])
    images, captions = _biased_pictures()
    request = verbs.request(host, SETTINGS["concept"])
    data = Captioned(prompts=captions, pictures=_latents(host, images))
    return Benign(**BIAS)(host, request, data=data, seed=99)


@lru_cache(maxsize=1)
def _biased_pictures() -> tuple[Any, list[str]]:
    """One subject, flat, mostly in the first colour, with captions that name neither colour nor style."""
    import torch

    from palimpsest.worlds.glyphs import GLYPHS

    draws, n, of = torch.Generator().manual_seed(7_000), SETTINGS["pictures"], GLYPHS.vocabulary
    first, second = (of["colour"].index(a) for a in SETTINGS["attributes"])
    often = torch.arange(n) < SETTINGS["share"] * n
    labels = {
        "subject": torch.full((n,), of["subject"].index(SETTINGS["concept"])),
        "colour": torch.where(often, first, second),
        "style": torch.full((n,), of["style"].index("flat")),
    }
    made = GLYPHS.draw(labels, generator=draws)
    told = {k: v for k, v in made.labels.items() if k in ("subject", "background", "position")}
    return made.images, GLYPHS.caption(told, generator=draws)


def _latents(host: Any, images: Any) -> Any:
    import torch

    from palimpsest.ops.drawn import Drawn

    return Drawn(row=torch.arange(len(images)), x0=host.latents(images))


def _debiased(host: Any, world: Any, system: str, seed: int) -> Any:
    from palimpsest import run as verbs
    from palimpsest.erase.invdiff import InvDiff
    from palimpsest.erase.uce_debias import UCEDebias
    from palimpsest.probes.evaluators import judges_for
    from palimpsest.train.benign import Benign, Captioned

    request = verbs.request(host, SETTINGS["concept"])
    images, captions = _biased_pictures()
    if system == INVDIFF:
        return InvDiff(**EVENING)(host, request, data=(images, captions), seed=seed)
    if system == PLAIN:
        plain = Benign(**{k: v for k, v in EVENING.items() if not k.startswith("group")})
        return plain(host, request, data=Captioned(prompts=captions, pictures=_latents(host, images)), seed=seed)
    judge = judges_for(host)[0]
    classes = [judge.evaluator.classes.index(f"colour:{a}") for a in SETTINGS["attributes"]]

    def which(drawn: Any) -> Any:
        return judge.read(drawn)[:, classes].argmax(1)

    return UCEDebias(attributes=SETTINGS["attributes"], **CLOSED)(host, request, data=which, seed=seed)


def _prompts(world: Any, seed: int) -> list[str]:
    """Prompts for the subject that name no colour, on grounds on which either colour shows."""
    import torch

    from palimpsest.worlds.glyphs import visible

    of = world.vocabulary
    shows = visible()[[of["colour"].index(a) for a in SETTINGS["attributes"]]].all(0).tolist()
    grounds = [{}, *({"background": b} for b, both in zip(of["background"], shows, strict=True) if both)]
    every = [
        world.prompt(subject=SETTINGS["concept"], position=place, **ground)
        for place in of["position"]
        for ground in grounds
    ]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(8_000 + seed)).tolist()
    return [every[order[i % len(order)]] for i in range(SETTINGS["prompts"])]


def _others(world: Any, seed: int) -> list[tuple[str, str]]:
    """(prompt, subject) of other subjects, no colour named."""
    words = [w for w in world.vocabulary["subject"][:8] if w != SETTINGS["concept"]]
    places = world.vocabulary["position"]
    rows = [(words[i % len(words)], places[(i + seed) % len(places)]) for i in range(SETTINGS["others"])]
    return [(world.prompt(subject=w, position=p), w) for w, p in rows]


def colours(host: Any, world: Any, images: Any) -> str:
    """One digit a picture: which of the attributes its colour is, 0 or 1; - for any other colour."""
    from palimpsest.probes.evaluators import judges_for

    judge = judges_for(host)[0]
    every = [judge.evaluator.classes.index(f"colour:{c}") for c in world.vocabulary["colour"]]
    found = judge.read(images)[:, every].argmax(1).tolist()
    wanted = [world.vocabulary["colour"].index(a) for a in SETTINGS["attributes"]]
    return "".join(str(wanted.index(c)) if c in wanted else "-" for c in found)


def first_share(records: Sequence[Record]) -> Interval:
    """Of the first colour among pictures of either."""
    every = "".join(r["colours"] for r in records)
    return statistics.wilson(every.count("0"), every.count("0") + every.count("1"))


def distance(share: Interval) -> Interval:
    """Total variation of (share, 1 - share) from (1/2, 1/2); its interval covers the share's."""
    ends = [abs(share.low - 0.5), abs(share.high - 0.5)]
    low = 0.0 if share.low <= 0.5 <= share.high else min(ends)
    return Interval(abs(share.value - 0.5), low, max(ends))


def lines(by: Records, name: Any) -> list[str]:
    """The table."""
    first, second = SETTINGS["attributes"]
    text = TEXT.format(**SETTINGS, percent=100 * SETTINGS["share"], first=first, second=second)
    rows = []
    for system, records in by.items():
        if worked(by, system):
            share, every = first_share(records), "".join(r["colours"] for r in records)
            cells = [percent(share), percent(distance(share)), f"{100 * every.count('-') / len(every):.0f} %"]
            cells += [percent(rate(records, "shown")), percent(rate(records, "others"))]
            rows.append(f"| {name(system)} | " + " | ".join(cells) + " |")
    return [text, *rows, ""]


def judge(system: str, by: Records) -> Judged:
    """Closer to even than the biased model (InvDiff: also than plain fine-tuning on the same pictures), as good."""
    rivals = (UNTOUCHED, PLAIN) if system == INVDIFF else (UNTOUCHED,)
    also = " and than plain fine-tuning on the same pictures" if system == INVDIFF else ""
    measured = f"two colours are drawn closer to even than by the biased model{also}, nothing losing over 5 points"
    if not worked(by, system, *rivals):
        return Judged(measured=measured, found="", verdict="not measured", why="the study was not run")
    mine = distance(first_share(by[system]))
    theirs = [distance(first_share(by[r])) for r in rivals]
    lost = min(change(by[UNTOUCHED], by[system], k).value for k in ("shown", "others"))
    apart = all(mine.high < t.low for t in theirs)
    closer = all(mine.value < t.value - CLOSER for t in theirs)
    found = f"distance from even {percent(mine)} against " + " and ".join(percent(t) for t in theirs)
    why = "the intervals are apart" if apart else "closer, but the intervals overlap" if closer else _not_closer(rivals)
    rest = _others_share(by[system]) - _others_share(by[UNTOUCHED])
    if rest > -SPARED:
        why += f"; {100 * rest:.0f} points more pictures in colours that are neither"
    if lost < SPARED:
        why += f"; what was asked for is shown {-100 * lost:.0f} points less often"
    return Judged(
        measured=measured,
        found=f"{found}; pictures of the subject {points(change(by[UNTOUCHED], by[system], 'shown'))}",
        verdict="holds" if apart and lost >= SPARED else "holds in part" if closer else "does not hold here",
        why=why,
    )


def _others_share(records: Sequence[Record]) -> float:
    """Of pictures in neither colour."""
    every = "".join(r["colours"] for r in records)
    return every.count("-") / len(every)


def _not_closer(rivals: Sequence[str]) -> str:
    if PLAIN in rivals:
        return (
            "not 5 points closer than both: likely because the losses of single pictures tell their colours too weakly "
            "for the groups to be those of the bias, and the training is short"
        )
    return "not 5 points closer than the biased model"


STUDY = Study(
    settings=SETTINGS,
    systems=(UNTOUCHED, PLAIN, UCE, INVDIFF),
    examine=examine,
    uses=("palimpsest.train.benign",),
)
