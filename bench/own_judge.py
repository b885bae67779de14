"""How right is an untouched model as the judge of pictures? Held against the drawn worlds' truth, which it is not told.

    OMP_NUM_THREADS=1 python bench/own_judge.py tiny/sd --out judged
    OMP_NUM_THREADS=1 python bench/own_judge.py tiny/portraits --out judged
    OMP_NUM_THREADS=1 python bench/own_judge.py tiny/sd --edited heart purple sketch --out judged

Without `--edited`: pictures that the world drew (truth: their labels) and pictures that the model drew of captions
(truth: the oracle's reading). The world is hidden: the judge gets names and kinds, as it would on anybody's model.
Every word of a kind is a candidate; a second look knows every other word only, so that half of the pictures show none
of them.

With `--edited`: erasures of each concept, audited with few pictures; the model's own reading of every picture of the
audit against the oracle's, before and after.

Every 20 pictures are kept in the folder and not judged again. An hour of one core for 1,000 pictures of either kind.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from palimpsest import run as verbs
from palimpsest import tiny
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Kind
from palimpsest.exam import budgets
from palimpsest.ops.statistics import wilson
from palimpsest.probes.drawn import collect
from palimpsest.probes.evaluators import classes_of, decide, judges_for, kind_of, rows_of, word_of
from palimpsest.probes.own_judge import NAME, OwnJudge, Race
from palimpsest.worlds.concepts import WORLDS

PART = 20
KINDS: dict[str, dict[str, Kind]] = {
    "glyphs": {"subject": "object", "colour": "attribute", "style": "style"},
    "faces": {"identity": "identity", "style": "style"},
}
SYSTEMS = {"erase/uce": {}, "erase/spm": {"steps": 300}, "erase/esd": {"steps": 60}}
ORACLE = "oracle"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Pictures (n, 3, H, W) and by key the words that each shows, () where the world says none."""

    images: Tensor
    truth: dict[str, list[list[str]]]


def words_of(world: Any, key: str) -> list[str]:
    return [w for w in world.vocabulary[key] if w not in world.held_out.get(key, ())]


def pictures(host: Any, world: Any, which: str, rows: range, without: frozenset[str]) -> Shown:
    """Rows of the endless list of pictures of a set; the same ones every time."""
    generator = torch.Generator().manual_seed(7919 * rows.start + (which == "generated"))
    labels = world.sample(len(rows), generator=generator, without=without)
    if which == "drawn":
        pictures = world.draw(labels, generator=generator)
        heads = {k: v.tolist() for k, v in pictures.labels.items()}
        said = {k: [[world.vocabulary[k][i]] if i >= 0 else [] for i in v] for k, v in heads.items()}
        return Shown(images=pictures.images, truth=_both(said))
    images = host.sample(world.caption(labels, generator=generator), [1_000_000 + row for row in rows])
    read = tiny.oracle(world.name).read(images)
    said = {
        k: [[world.vocabulary[k][int(row.argmax())]] if float(row.sum()) > 0.5 else [] for row in p]
        for k, p in read.items()
    }
    return Shown(images=images, truth=_both(said))


def _both(said: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """The words of two-subject scenes under one key."""
    return {
        k: [[*a, *b] for a, b in zip(v, said.get(f"{k}2", [[] for _ in v]), strict=True)]
        for k, v in said.items()
        if not k.endswith("2")
    }


def judge_of(world: Any, args: argparse.Namespace, every: int) -> OwnJudge:
    """The model with its world hidden; `every` 2 knows every other word only."""
    hidden = verbs.load(args.model)
    hidden.knows = None
    concepts = [
        Concept(name=w, kind=kind)
        for key, kind in KINDS[world.name].items()
        for w in [w for w in words_of(world, key) if w not in args.without][::every]
    ]
    return OwnJudge(hidden, concepts, Race(forwards=args.forwards or 5 * len(concepts)))


def parts(folder: Path, name: str, n: int, work: Any) -> Iterator[dict[str, Any]]:
    """What `work` says of every PART rows, kept in a file as soon as it is said."""
    file = folder / f"{name}.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    yield from kept[: -(-n // PART)]
    for start in range(PART * len(kept), n, PART):
        said = work(range(start, min(start + PART, n)))
        with file.open("a") as f:
            f.write(json.dumps(said) + "\n")
        yield said


def own_words(found: OwnJudge, images: Tensor, world: Any) -> dict[str, Any]:
    """By key: what is seen, what would be without none, and the forwards of each picture."""
    chances, spent = found.outcome(found.host.latents(images).float())
    classes, keys = found.evaluator.classes, {kind: key for key, kind in KINDS[world.name].items()}
    said: dict[str, Any] = {"forwards": spent.tolist()}
    for kind, key in keys.items():
        places = [i for i, c in enumerate(classes) if c.startswith(f"{kind}:")]
        present = decide(found.evaluator, chances[:, places])
        names = [word_of(classes[i]) for i in places]
        said[key] = [
            {"seen": [n for n, on in zip(names, row, strict=True) if on], "first": names[int(p.argmax())]}
            for row, p in zip(present.tolist(), chances[:, places], strict=True)
        ]
    return said


def pictures_table(args: argparse.Namespace, host: Any, world: Any) -> Table:
    table = Table(title=f"{args.model}: the untouched model's reading against the truth, world hidden")
    for heading in ("pictures", "kind", "candidates", "n", "right", "without none", "missed", "other", "forwards"):
        table.add_column(heading, justify="left" if heading in ("pictures", "kind") else "right")
    keys, subject = KINDS[world.name], next(iter(KINDS[world.name]))
    for every, n in ((1, args.pictures), (2, args.pictures // 4)):
        found = judge_of(world, args, every)
        names = {word_of(c) for c in found.evaluator.classes}
        for which in ("drawn", "generated"):

            def work(rows: range, which: str = which, found: OwnJudge = found) -> dict[str, Any]:
                shown = pictures(host, world, which, rows, frozenset(args.without))
                return {"truth": {k: shown.truth[k] for k in keys}, **own_words(found, shown.images, world)}

            stem = f"{args.model.replace('/', '-')}-{which}-{every}-{found.race.forwards}-{found.evaluator.sha256[:8]}"
            kept = list(parts(args.out, stem, n, work))
            spent = torch.tensor([f for part in kept for f in part["forwards"]]).double()
            for key, kind in keys.items():
                rows = [
                    (set(truth) & names, said, len(first) > 1)
                    for part in kept
                    for truth, said, first in zip(part["truth"][key], part[key], part["truth"][subject], strict=True)
                ]
                groups = {
                    "": [(t, s) for t, s, two in rows if t and not two],
                    ", two subjects": [(t, s) for t, s, two in rows if t and two],
                    ", none of them": [(t, s) for t, s, _ in rows if not t],
                }
                of = str(sum(kind_of(c) == kind for c in found.evaluator.classes))
                for what, some in groups.items():
                    if some:
                        table.add_row(f"{which}{what}", key, of, *scored(some), f"{spent.mean():.0f}")
    return table


def scored(rows: Sequence[tuple[set[str], dict[str, Any]]]) -> list[str]:
    """n, right, right without none, seen as nothing, seen as another; with nothing to see, right is to see nothing."""
    n = len(rows)
    right = sum(bool(set(s["seen"]) & t) if t else not s["seen"] for t, s in rows)
    first = sum(s["first"] in t for t, s in rows)
    nothing = sum(not s["seen"] for t, s in rows if t)
    other = sum(bool(set(s["seen"]) - t) for t, s in rows)
    has = any(t for t, _ in rows)
    return [str(n), _rate(right, n), _rate(first, n) if has else "", _rate(nothing, n) if has else "", _rate(other, n)]


def _rate(k: int, n: int) -> str:
    rate = wilson(k, n)
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def edited_table(args: argparse.Namespace, host: Any, world: Any) -> Table:
    table = Table(title=f"{args.model}: audits of erasures, read by the untouched model and by the oracle")
    for heading in ("erased", "by", "asked for", "n", "oracle sees", "model sees", "agree", "missed", "mistaken"):
        table.add_column(heading, justify="left" if heading in ("erased", "by", "asked for") else "right")
    for word in args.edited:
        for system, quick in SYSTEMS.items():
            stem = f"{args.model.replace('/', '-')}-edited-{word}-{system.partition('/')[2]}"
            (said,) = parts(args.out, stem, 1, lambda rows, w=word, s=system, q=quick: edited(args, host, w, s, q))
            for what, rows in said["rows"].items():
                n, pairs = len(rows), [(bool(a), bool(b)) for a, b in rows]
                oracle, own = sum(a for a, _ in pairs), sum(b for _, b in pairs)
                missed, mistaken = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
                agree = _rate(n - missed - mistaken, n)
                table.add_row(
                    word, system.partition("/")[2], what, str(n), f"{100 * oracle / n:.0f}", f"{100 * own / n:.0f}",
                    agree, str(missed), str(mistaken),
                )  # fmt: skip
            table.add_row(word, "", f"forwards a picture: {said['forwards']:.0f}", *[""] * 6)
    return table


def edited(args: argparse.Namespace, host: Any, word: str, system: str, quick: dict[str, Any]) -> dict[str, Any]:
    """By role and model: for each picture and concept asked for, whether the oracle and the model see it."""
    request = verbs.request(host, word)
    patch = catalog.load(system)(**{**budgets.parameters(system, word), **quick})(host, request)
    plan = verbs.plan(host, request, verbs.Look(prompts=args.prompts, seeds=1))
    hidden = verbs.load(args.model)
    hidden.knows = None
    concepts = [Concept(name=c.name, kind=c.kind, labels=c.labels) for c in plan.concepts]
    own = OwnJudge(hidden, concepts, Race(forwards=2 * (plan.steps or 50)))
    evidence = collect(host, patch, plan, [*judges_for(host), own])
    oracle = next(name for name in evidence.evaluators if name != NAME)
    rows: dict[str, list[list[bool]]] = {}
    target = request.target[0]
    for which in ("before", "after"):
        for g, group in enumerate(plan.groups):
            for asked in {group.concept, target} - {None}:
                classes = {j: classes_of(evidence.evaluators[j], asked) for j in (oracle, NAME)}
                of = plan.rows(group=g)
                bits = [evidence.present(j, which, classes[j])[of].tolist() for j in (oracle, NAME)]
                mine = "itself" if asked is group.concept else "the target"
                rows.setdefault(f"{group.role}, {mine}, {which}", []).extend(map(list, zip(*bits, strict=True)))
    n, steps = plan.pictures(), plan.steps or 50
    drawing = n * steps * rows_of(host, plan)
    return {"rows": rows, "forwards": (evidence.cost["forwards"]["denoiser"] - drawing) / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["tiny/sd", "tiny/portraits"])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--forwards", type=int, default=0, help="a picture; by default five for each candidate")
    parser.add_argument("--edited", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--prompts", type=int, default=12, help="of the target in an audit of an erasure")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="words that no picture may show")
    parser.add_argument("--out", type=Path, default=Path("judged"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    host = verbs.load(args.model)
    world = WORLDS[host.knows.name]  # type: ignore[union-attr]
    table = edited_table(args, host, world) if args.edited else pictures_table(args, host, world)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
