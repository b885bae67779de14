"""Put trained classifiers where the package looks: `python -m palimpsest.tiny.ship_classifiers orl cifar=runs/cifar`.

A task's model of seed 0 is shipped whole, the answers of its other seeds and of its retrain oracles as references.
`cifar=FOLDER` takes what `train_classifier` left there, one folder for each seed and request, `base-0` among them; a
task alone is trained here, in seconds to minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from palimpsest import tiny
from palimpsest.core.files import write_text
from palimpsest.tiny import references
from palimpsest.tiny.classifiers import TASKS, Task, digest, keep, model
from palimpsest.tiny.references import Left, left_in
from palimpsest.tiny.train_classifier import logits, reached

SEEDS = (0, 1, 2)


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help=f"of {', '.join(TASKS)}, each perhaps with =FOLDER of trained models")
    for word in parser.parse_args(argv).tasks:
        name, _, runs = word.partition("=")
        task, out = TASKS[name](), tiny.WEIGHTS / name
        out.mkdir(parents=True, exist_ok=True)
        references.write(gathered(task, Path(runs), out) if runs else trained(task, out), task, out)
        for file in sorted(out.iterdir()):
            file.chmod(0o644)
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
        for told in references.load(out):
            scores = ", ".join(f"{part} {value:.2f}" for part, value in told.accuracy.items())
            print(f"{told.without or 'everything':12} seed {told.seed}: {scores}")


if __name__ == "__main__":
    main()
