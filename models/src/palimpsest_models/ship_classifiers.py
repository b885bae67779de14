"""Put trained classifiers where the package looks: `python -m palimpsest_models.ship_classifiers orl cifar=runs/cifar`.

A task's model of seed 0 is shipped whole, the answers of its other seeds and of its retrain oracles as references.
`cifar=FOLDER` takes what `train_classifier` left there, one folder for each seed and request, `base-0` among them; a
task alone is trained here, in seconds to minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest import tiny
from palimpsest.core.files import write_beside, write_text
from palimpsest.tiny import references
from palimpsest.tiny.classifiers import TASKS, Task, digest, keep, model
from palimpsest_models.train_classifier import logits, reached

SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Left:
    """What is left of a trained model.

    Args:
        about: "without", "seed" and "accuracy", as in `Reference`.
        scores: logits (n, classes) of all of "train" and "test".
    """

    about: Mapping[str, Any]
    scores: Mapping[str, Tensor]


def gathered(task: Task, runs: Path, out: Path) -> list[Left]:
    """Ships what was trained elsewhere; the models that are done so far."""
    done = sorted(folder for folder in runs.iterdir() if (folder / "model.safetensors").is_file())
    first = runs / "base-0"
    if first not in done:
        raise SystemExit(f"{first} is not trained yet; it is what is shipped whole.")
    shutil.copyfile(first / "model.safetensors", out / "model.safetensors")
    config = json.loads((first / "config.json").read_text(encoding="utf-8"))
    config["about"]["task"] = digest(task)
    write_text(out / "config.json", json.dumps(config, indent=1) + "\n")
    return [left_in(folder) for folder in done]


def trained(task: Task, out: Path) -> list[Left]:
    """Trains the model, other seeds of it, and its retrain oracles, and ships the first."""
    found = []
    for seed in SEEDS:
        for number, request in [(None, None), *enumerate(task.forget)]:
            root = model(task, seed=seed, without=request).root
            scores = {"train": logits(root, task.train.samples), "test": logits(root, task.test.samples)}
            about = {
                "recipe": asdict(task.recipe),
                "seed": seed,
                "without": "" if number is None else references.without(task, number),
                "accuracy": reached(scores, task.train, task.test, request),
                "task": digest(task),
            }
            found.append(Left(about=about, scores=scores))
            if seed == 0 and request is None:
                keep(root, task, out, about=about)
    return found


def write_references(models: Sequence[Left], task: Task, out: Path) -> Path:
    """Puts what models answered into one file.

    A part is stored as round(z / s), z the logits less their row's mean, s = max |z| / 127. An oracle of one request
    has no answers on what another one forgets.
    """
    parts, tensors, about = references.rows(task), {}, []
    owners = {f"forget {i}": references.without(task, i) for i in range(len(task.forget))}
    for number, left in enumerate(models):
        about.append({key: left.about[key] for key in ("without", "seed", "accuracy")})
        for part, index in parts.items():
            if left.about["without"] not in ("", owners.get(part, left.about["without"])):
                continue
            z = left.scores["test" if part == "test" else "train"][index].float()
            z = z - z.mean(1, keepdim=True)
            step = z.abs().max().clamp(min=1e-6) / 127
            tensors[f"{number}|{part}"] = (z / step).round().to(torch.int8)
            tensors[f"{number}|{part}|step"] = step
    meta = {"references": json.dumps(about)}
    return write_beside(out / references.FILE, lambda tmp: save_file(tensors, str(tmp), metadata=meta))


def left_in(folder: Path) -> Left:
    """What `train_classifier` left in its folder: config.json and logits.safetensors."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["about"]
    with safe_open(str(folder / "logits.safetensors"), framework="pt") as f:
        return Left(about=told, scores={key: f.get_tensor(key) for key in ("train", "test")})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help=f"of {', '.join(TASKS)}, each perhaps with =FOLDER of trained models")
    for word in parser.parse_args(argv).tasks:
        name, _, runs = word.partition("=")
        task, out = TASKS[name](), tiny.WEIGHTS / name
        out.mkdir(parents=True, exist_ok=True)
        write_references(gathered(task, Path(runs), out) if runs else trained(task, out), task, out)
        for file in sorted(out.iterdir()):
            file.chmod(0o644)
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
        for told in references.load(out):
            scores = ", ".join(f"{part} {value:.2f}" for part, value in told.accuracy.items())
            print(f"{told.without or 'everything':12} seed {told.seed}: {scores}")


if __name__ == "__main__":
    main()
