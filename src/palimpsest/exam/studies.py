"""Small studies: comparisons that papers draw between two systems, and claims that erasing alone does not show.

| study | claim |
|---|---|
| attack | RECE withstands attacks that bring concepts back after UCE; AdvUnlearn withstands those that break ESD |
| many | MACE erases many concepts at once with less harm to others than ESD |
| debiasing | InvDiff and UCE draw attributes in even shares |
| stamps | Geom-Erasing removes what no prompt mentions |
| backfire | Modular LoRA: harmless fine-tuning brings a concept back, unless the safety LoRA stays apart |
| letters | homoglyph unlearning makes letters that look alike read alike |
| editing | ACE keeps a concept from being edited into a picture |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.files import write_text
from palimpsest.core.trace import Progress
from palimpsest.exam import backfire, debiasing, editing, letters, stamps
from palimpsest.exam.pictures import host_of, model_digest, oracle_of
from palimpsest.exam.study import SEEDS, STAND_INS, Study, cost, pictures, seen
from palimpsest.exam.work import BUDGETS, method_of, source_digest

NEVER = "never saw it"  # stands for a system: the attack on a model that has nothing to bring back
ATTACK = {"host": "tiny/sd", "oracle": "tiny/sd-without-star", "concept": "star", "prompts": 12, "steps": 15}
MANY: dict[str, Any] = {
    "host": "tiny/portraits",
    "counts": (5, 20),
    "others": 20,
    "pictures": 20,
    "steps": 15,
    "budgets": {"erase/mace": {"lr": 5e-3}},  # beside the exam's; found on other names
}


def run(name: str, results: Path, *, again: bool = False, progress: Progress | None = None) -> Path:
    """Runs what is missing of a study and writes `results/studies/<name>.json` after every run.

    Systems that are not installed are left out; a system that refuses is recorded with its words.

    Raises:
        BadRequest: no such study.
    """
    todo = _due(name, results, again)
    study, path = STUDIES[name], results / "studies" / f"{name}.json"
    kept = {r["key"]: r for r in read(results, name)}
    work = list(_work(study))
    for done, (system, seed, key) in enumerate(todo, start=1):
        try:
            found = study.examine(system, seed)
        except PalimpsestError as e:
            found = {"refused": str(e)}
        kept[key] = {"system": system, "seed": seed, "key": key, **found}
        records = [kept[k] for _, _, k in work if k in kept]
        write_text(path, json.dumps({"study": name, "records": records}, indent=1, sort_keys=True) + "\n")
        if progress is not None:
            progress(f"study of {name}", done, len(todo))
    return path


def forecast(name: str, results: Path, *, again: bool = False) -> list[str]:
    """What `run` would do: one line for each system and seed that is due.

    Raises:
        BadRequest: no such study.
    """
    due = _due(name, results, again)
    lines = [f"study of {name}: {system}, seed {seed}" for system, seed, _ in due]
    return [*lines, f"study of {name}: {len(due)} of {len(list(_work(STUDIES[name])))} runs are due."]


def read(results: Path, name: str) -> list[dict[str, Any]]:
    """The records of a study; [] where it was never run."""
    path = results / "studies" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["records"] if path.is_file() else []


def _due(name: str, results: Path, again: bool) -> list[tuple[str, int, str]]:
    if name not in STUDIES:
        raise BadRequest(f"There is no study {name!r}; the studies are {', '.join(STUDIES)}.")
    kept = {r["key"] for r in read(results, name)}
    return [(system, seed, key) for system, seed, key in _work(STUDIES[name]) if again or key not in kept]


def _work(study: Study) -> Iterator[tuple[str, int, str]]:
    for system in study.systems:
        stand_in = system == NEVER or system in STAND_INS
        if not stand_in and system not in catalog.entries():
            continue
        made = [] if stand_in else [source_digest(catalog.find(system).module), BUDGETS.get(system)]
        models = [model_digest(study.settings[k]) for k in ("host", "oracle") if k in study.settings]
        uses = [source_digest(module) for module in study.uses]
        for seed in SEEDS:
            parts = [dict(study.settings), system, seed, made, uses, models]
            yield system, seed, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# -- under attack ----------------------------------------------------------------------------------------


def _attack(system: str, seed: int) -> dict[str, Any]:
    """Presence of the target as the model is asked for it plainly, and with the attack's words before each prompt.

    The attacker has the edited weights and knows how the untouched model draws the target (white box, 60 steps).
    """
    import torch

    from palimpsest import run as verbs
    from palimpsest.core.patch import Patch
    from palimpsest.ops.attacks import attacked
    from palimpsest.worlds import concepts as words_of

    host = host_of(ATTACK["host"])
    request = verbs.request(host, ATTACK["concept"])
    target = request.target[0]
    world = words_of.world_of(host.folder)
    assert world is not None  # the exam's models are of drawn worlds
    draws = torch.Generator().manual_seed(2_000 + seed)
    prompts = words_of.prompts(world, target.name, ATTACK["prompts"], generator=draws)
    rng = torch.Generator().manual_seed(seed)
    if system == NEVER:
        model, patch, spent = oracle_of(ATTACK["oracle"]), None, {}
        if model is None:
            raise BadRequest(f"{ATTACK['oracle']} is not shipped.")
        words = _attack_on(model, host, target, rng)
    else:
        model, patch = host, method_of(system)(host, request, seed=seed)
        words, spent = attacked(host, patch, target, rng=rng), cost(patch)
    patch = patch or Patch(base=model.fingerprint())
    with patch.applied(model):
        plain = _shown(model, prompts, [target] * len(prompts), seed, ATTACK["steps"])
        with model.speaking(words):
            found = _shown(model, prompts, [target] * len(prompts), seed, ATTACK["steps"])
    return {"plain": plain, "attacked": found, "cost": spent}


def _attack_on(model: Any, host: Any, target: Any, rng: Any) -> Any:
    """The same attack on another model of the same latents, with the untouched one's walks."""
    import torch

    from palimpsest.ops.attacks import attack, random_words
    from palimpsest.ops.prompts import prompts_for
    from palimpsest.ops.trajectories import visit

    asked = prompts_for(target)
    points = visit(host, asked, 8, rng, steps=10, guidance=3.0)
    points = points[torch.randperm(len(points), generator=rng)]
    return attack(model, random_words(model, 3, rng), asked, points, steps=60, batch=8, lr=0.1)


# -- many concepts ---------------------------------------------------------------------------------------


def _many(system: str, seed: int) -> dict[str, Any]:
    """Presence of identities that were all erased in one run, and of others that the method was not told to keep."""
    import torch

    from palimpsest import run as verbs
    from palimpsest.worlds import concepts as words_of

    host = host_of(MANY["host"])
    world = words_of.world_of(host.folder)
    assert world is not None
    out = world.held_out.get("identity", frozenset())
    names = [n for n in world.vocabulary["identity"] if n not in out]
    order = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(77))]
    others, order = order[: MANY["others"]], order[MANY["others"] :]
    found: dict[str, Any] = {}
    for count in MANY["counts"]:
        targets, keep = order[:count], order[count:]
        method = replace(method_of(system), **MANY["budgets"].get(system, {}))
        patch = method(host, verbs.request(host, targets, keep=keep), seed=seed)
        draws, bits = torch.Generator().manual_seed(3_000 + seed), {}
        with patch.applied(host):
            for what, asked, n in (("targets", targets, MANY["pictures"] // count), ("others", others, 1)):
                prompts = [words_of.prompts(world, name, n, generator=draws) for name in asked]
                rows = [(p, words_of.concept(world, a)) for a, ps in zip(asked, prompts, strict=True) for p in ps]
                bits[what] = _shown(host, [p for p, _ in rows], [c for _, c in rows], seed, MANY["steps"])
        found[str(count)] = {**bits, "cost": cost(patch)}
    return {"counts": found}


def _shown(host: Any, prompts: list[str], concepts: list[Any], seed: int, steps: int) -> str:
    return seen(host, pictures(host, prompts, seed, steps=steps), concepts)


STUDIES: dict[str, Study] = {
    "attack": Study(
        settings=ATTACK,
        systems=("erase/uce", "erase/rece", "erase/esd", "erase/adv_unlearn", NEVER),
        examine=_attack,
        uses=("palimpsest.ops.attacks",),
    ),
    "many": Study(settings=MANY, systems=("erase/uce", "erase/esd", "erase/mace"), examine=_many),
    **{m.NAME: m.STUDY for m in (debiasing, stamps, backfire, letters, editing)},
}
