"""Values that no eraser takes are refused in words, whichever eraser it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest

BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "ace": [({"prior_weight": 1.5}, "prior_weight"), ({"priors": 0}, "priors")],
    "adv_unlearn": [({"words": 0}, "words"), ({"attack_lr": -1.0}, "attack_lr")],
    "all_but_one": [({"train": "kv"}, "xattn"), ({"eta": -1.0}, "eta")],
    "ant": [({"rank": 2}, "share=1"), ({"early": 0.5}, "early"), ({"share": 0.0}, "share")],
    "concept_ablation": [({"objective": "x"}, "model, noise"), ({"pictures": 0}, "pictures")],
    "concept_steerers": [({"depth": 0.0}, "depth"), ({"k": 0}, "k is 0")],
    "crce": [({"draws": 0}, "draws")],
    "domain_correction": [({"warmup": 1.0}, "warmup")],
    "esd": [({"steps": 0}, "steps"), ({"walks": "x"}, "kept"), ({"walk_steps": 0}, "walk_steps")],
    "few_shot": [({"pictures": 0}, "pictures")],
    "geom_erasing": [({"bins": -1}, "bins")],
    "homoglyphs": [({"captions": 0}, "captions")],
    "invdiff": [({"groups": 1}, "groups")],
    "latent_directions": [({"pictures": 0}, "pictures")],
    "mace": [({"rank": 0}, "rank"), ({"caption_weight": -1.0}, "caption_weight")],
    "modular_lora": [({"rank": 0}, "rank")],
    "realera": [({"near": 0.4, "far": 0.5}, "far < near"), ({"rank": 0}, "rank")],
    "rece": [({"rounds": -1}, "rounds"), ({"mimic_ridge": 0.0}, "mimic_ridge")],
    "safree": [({"until": 2.0}, "until"), ({"alpha": -1.0}, "alpha")],
    "salun": [({"rank": 2}, "low-rank"), ({"share": 0.0}, "share")],
    "score_forgetting": [({"low": 0.9, "high": 0.5}, "low"), ({"forget_share": 0.0}, "forget_share")],
    "sld": [({"strength": "huge"}, "weak, medium"), ({"scale": -1.0}, "scale"), ({"momentum_decay": 1.0}, "decay")],
    "spm": [({"anchors": 0}, "anchors"), ({"rank": 0}, "rank")],
    "trce": [({"weights": (0.0, 0.0, 0.0, 0.0)}, "not all 0"), ({"walks": 0}, "walks")],
    "uce": [({"erase_weight": -1.0}, "erase_weight"), ({"tokens": "some"}, "tail")],
    "uce_debias": [({"attributes": ("one",)}, "2 or more"), ({"ratios": (0.5, 0.2)}, "sum to")],
}


@pytest.mark.parametrize(("system", "change", "words"), [(s, *bad) for s, rows in BAD.items() for bad in rows])
def test_what_a_system_cannot_take_is_refused_in_words(system: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        replace(catalog.load(f"erase/{system}")(), **change)
