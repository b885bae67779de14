"""What fine-tuning on harmless pictures does to an erasure: on top of it, and beside it."""

from __future__ import annotations

from typing import Any

import torch

from palimpsest.erase.modular_lora import after_benign
from palimpsest.exam.case import Case, Exam, cases
from palimpsest.exam.pictures import cost, host_of, method_of, shows, world
from palimpsest.exam.tables import shares
from palimpsest.ops.drawn import Drawn
from palimpsest.run.requests import request
from palimpsest.train.benign import Benign, Captioned
from palimpsest.worlds.concepts import prompts

(CASE,) = CASES = cases(__file__)
WAYS = ("safety", "on top", "beside", "alone")


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of pictures of the target and of others: erased, and fine-tuned in both orders."""
    host = host_of(case["host"])
    glyphs, target = world(host), case["concept"]
    draws = torch.Generator().manual_seed(6_000 + seed)
    labels = glyphs.sample(case["pictures"], generator=draws, without=frozenset({target}))
    drawn = glyphs.draw(labels, generator=draws)
    data = Captioned(
        prompts=drawn.captions, pictures=Drawn(row=torch.arange(len(drawn.images)), x0=host.latents(drawn.images))
    )
    safety = method_of(system, "backfire")(host, request(host, target), seed=seed)
    patches = {"safety": safety, **after_benign(host, safety, data, tuning=Benign(**case["tuning"]), seed=seed)}
    n, others = case["prompts"], case["others"]
    asked = {"target": [(p, target) for p in prompts(glyphs, target, n, generator=draws)]}
    asked["others"] = [(p, w) for w in others for p in prompts(glyphs, w, n // len(others), generator=draws)]
    bits: dict[str, Any] = {"cost": cost(safety)}
    for way in WAYS:
        with patches[way].applied(host):
            for what, rows in asked.items():
                bits[f"{what}, {way}"] = shows(host, glyphs, rows, seed, case["steps"])
    return bits


COLUMNS = {f"{what}, {way}": shares(f"{what}, {way}") for what in ("target", "others") for way in WAYS}
SYSTEMS = ("erase/modular_lora",)
EXAM = Exam(name="backfire", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
