"""Put trained CIFAR-10 models where the package looks: `python -m palimpsest.tiny.ship_classifiers runs/cifar`.

The folder holds one model folder of `train_classifier` for each seed and request; `base-0` is shipped whole, the
answers of all others as references.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from palimpsest import tiny
from palimpsest.tiny import references
from palimpsest.tiny.classifiers import cifar


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of trained models")
    runs: Path = parser.parse_args(argv).runs
    done = sorted(folder for folder in runs.iterdir() if (folder / "model.safetensors").is_file())
    first = runs / "base-0"
    if first not in done:
        raise SystemExit(f"{first} is not trained yet; it is what is shipped whole.")
    out = tiny.WEIGHTS / "cifar"
    out.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(first / file, out / file)
    references.write(done, cifar(), out)
    for file in sorted(out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    for told in references.load(out):
        scores = ", ".join(f"{part} {value:.2f}" for part, value in told.accuracy.items())
        print(f"{told.without or 'everything':12} seed {told.seed}: {scores}")


if __name__ == "__main__":
    main()
