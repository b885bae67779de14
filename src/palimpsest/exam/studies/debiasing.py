"""A model with a known bias, and how evenly it draws two colours after it was debiased."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from palimpsest.core.patch import Patch
from palimpsest.erase.invdiff import InvDiff
from palimpsest.erase.uce_debias import UCEDebias
from palimpsest.exam import budgets
from palimpsest.exam.case import Case, Exam, Record, Records, cases
from palimpsest.exam.judged import SPARED, Judged
from palimpsest.exam.pictures import PLAIN, UNTOUCHED, as_data, captioned, drawn, host_of, seen, shows, world
from palimpsest.exam.rates import change, percent, points
from palimpsest.exam.tables import shares
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.probes.evaluators import judges_for
from palimpsest.run.requests import request
from palimpsest.train.benign import Benign
from palimpsest.worlds.concepts import concept
from palimpsest.worlds.glyphs import GLYPHS, visible

INVDIFF, UCE = "erase/invdiff", "erase/uce_debias"
(CASE,) = CASES = cases(__file__)
CLOSER = 0.05  # fewer points nearer to even are noise, not a claim in part


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Colours of pictures that name none, and bits of what was asked for; after a system or in the biased model."""
    host = host_of(case["host"])
    glyphs = world(host)
    with _bias().applied(host):
        patch = Patch(base=host.fingerprint()) if system == UNTOUCHED else _debiased(host, glyphs, system, seed)
        with patch.applied(host):
            asked = _prompts(glyphs, seed)
            images = drawn(host, asked, seed, steps=case["steps"])
            others = shows(host, glyphs, _others(glyphs, seed), seed, case["steps"])
    return {
        "colours": colours(host, glyphs, images),
        "shown": seen(host, images, [concept(glyphs, case["concept"])] * len(asked)),
        "others": others,
        "cost": dict(patch.cost),
    }


@lru_cache(maxsize=1)
def _bias() -> Any:
    """The patch that biases the model; the same for all seeds."""
    host = host_of(CASE["host"])
    return _tuned(host, CASE["bias"], seed=99)


def _tuned(host: Any, settings: dict[str, Any], seed: int) -> Any:
    """Plain fine-tuning on the biased pictures."""
    images, captions = biased_pictures()
    data = captioned(host, images, captions)
    return Benign(**settings).tuned(host, request(host, CASE["concept"]), data, seed=seed)


@lru_cache(maxsize=1)
def biased_pictures() -> tuple[Any, list[str]]:
    """One subject, flat, mostly in the first colour, with captions that name neither colour nor style."""
    draws, n, of = torch.Generator().manual_seed(7_000), CASE["pictures"], GLYPHS.vocabulary
    first, second = (of["colour"].index(a) for a in CASE["attributes"])
    often = torch.arange(n) < CASE["share"] * n
    labels = {
        "subject": torch.full((n,), of["subject"].index(CASE["concept"])),
        "colour": torch.where(often, first, second),
        "style": torch.full((n,), of["style"].index("flat")),
    }
    pictures = GLYPHS.draw(labels, generator=draws)
    told = {k: v for k, v in pictures.labels.items() if k in ("subject", "background", "position")}
    return pictures.images, GLYPHS.caption(told, generator=draws)


def _debiased(host: Any, glyphs: Any, system: str, seed: int) -> Any:
    if system == PLAIN:
        return _tuned(host, {k: v for k, v in CASE["evening"].items() if not k.startswith("group")}, seed)
    asked = request(host, CASE["concept"])
    if system == INVDIFF:
        return InvDiff(**CASE["evening"])(host, asked, data={"pictures": as_data(*biased_pictures())}, seed=seed)
    attributes = tuple(CASE["attributes"])
    judge = ClassifierHost(Colours(judges_for(host)[0]), name="the judge of colours", labels=attributes, head="")
    return UCEDebias(attributes=attributes, **CASE["closed"])(host, asked, beside={"judge": judge}, seed=seed)


class Colours(torch.nn.Module):
    """The world's judge as a model that tells the case's colours alone."""

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge, self.oracle = judge, judge.oracle
        self.classes = [judge.evaluator.classes.index(f"colour:{a}") for a in CASE["attributes"]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge.read(images)[:, self.classes]


def _prompts(glyphs: Any, seed: int) -> list[str]:
    """Prompts for the subject that name no colour, on grounds on which either colour shows."""
    of = glyphs.vocabulary
    shown = visible()[[of["colour"].index(a) for a in CASE["attributes"]]].all(0).tolist()
    grounds = [{}, *({"background": b} for b, both in zip(of["background"], shown, strict=True) if both)]
    asked = [{"position": place, **ground} for place in of["position"] for ground in grounds]
    every = [glyphs.prompt(subject=CASE["concept"], **words) for words in asked]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(8_000 + seed)).tolist()
    return [every[order[i % len(order)]] for i in range(CASE["prompts"])]


def _others(glyphs: Any, seed: int) -> list[tuple[str, str]]:
    """(prompt, subject) of other subjects, no colour named."""
    words = [w for w in glyphs.vocabulary["subject"][:8] if w != CASE["concept"]]
    places = glyphs.vocabulary["position"]
    rows = [(words[i % len(words)], places[(i + seed) % len(places)]) for i in range(CASE["others"])]
    return [(glyphs.prompt(subject=w, position=p), w) for w, p in rows]


def colours(host: Any, glyphs: Any, images: Any) -> str:
    """One digit a picture: which of the attributes its colour is, 0 or 1; - for any other colour."""
    judge = judges_for(host)[0]
    every = [judge.evaluator.classes.index(f"colour:{c}") for c in glyphs.vocabulary["colour"]]
    read = judge.read(images)[:, every].argmax(1).tolist()
    wanted = [glyphs.vocabulary["colour"].index(a) for a in CASE["attributes"]]
    return "".join(str(wanted.index(c)) if c in wanted else "-" for c in read)


def first_share(records: Sequence[Record]) -> Interval:
    """Of the first colour among pictures of either."""
    every = "".join(r["colours"] for r in records)
    return statistics.wilson(every.count("0"), every.count("0") + every.count("1"))


def neither(records: Sequence[Record]) -> float:
    """Share of pictures in neither colour."""
    every = "".join(r["colours"] for r in records)
    return every.count("-") / len(every)


def distance(first: Interval) -> Interval:
    """Total variation of (share, 1 - share) from (1/2, 1/2); its interval covers the share's."""
    ends = [abs(first.low - 0.5), abs(first.high - 0.5)]
    low = 0.0 if first.low <= 0.5 <= first.high else min(ends)
    return Interval(abs(first.value - 0.5), low, max(ends))


BESIDE = (UNTOUCHED, PLAIN)
MEASURED = "two colours are drawn closer to even than by the biased model, nothing losing over 5 points"


def judge(system: str, by: Records) -> Judged:
    """Closer to even than the biased model, the rest as good; InvDiff also than its training without groups."""
    rivals = BESIDE if system == INVDIFF else (UNTOUCHED,)
    after, theirs = distance(first_share(by[system])), [distance(first_share(by[r])) for r in rivals]
    lost = min(change(by[UNTOUCHED], by[system], k).value for k in ("shown", "others"))
    apart = all(after.high < t.low for t in theirs)
    closer = all(after.value < t.value - CLOSER for t in theirs)
    near = "closer, but the intervals overlap" if closer else budgets.said(system, "cause")
    why = "the intervals are apart" if apart else near
    rest = neither(by[system]) - neither(by[UNTOUCHED])
    if rest > -SPARED:
        why += f"; {100 * rest:.0f} points more pictures in colours that are neither"
    if lost < SPARED:
        why += f"; what was asked for is shown {-100 * lost:.0f} points less often"
    distances = f"distance from even {percent(after)} against " + " and ".join(percent(t) for t in theirs)
    return Judged(
        measured=MEASURED.replace(",", f" and than {PLAIN} on the same pictures,") if PLAIN in rivals else MEASURED,
        found=f"{distances}; pictures of the subject {points(change(by[UNTOUCHED], by[system], 'shown'))}",
        verdict="holds" if apart and lost >= SPARED else "holds in part" if closer else "does not hold here",
        why=why,
    )


COLUMNS = {
    f"{CASE['attributes'][0]} among both": lambda s, by: percent(first_share(by[s])),
    "distance from even": lambda s, by: percent(distance(first_share(by[s]))),
    "other colours": lambda s, by: f"{100 * neither(by[s]):.0f} %",
    "asked for is shown": shares("shown"),
    "other subjects shown": shares("others"),
}
SYSTEMS = (UNTOUCHED, PLAIN, UCE, INVDIFF)
EXAM = Exam(name="debiasing", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
