"""Train a small classifier, and the models that never saw what another one forgets.

`python -m palimpsest_models.train_classifier --data cifar10_jpeg --out runs/cifar --without class:cat --seed 1`
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.core.files import write_beside
from palimpsest.core.pictures import Pictures
from palimpsest.data.forget import ForgetRequest, chosen, drawn, split
from palimpsest.data.read import Dataset, read
from palimpsest.hosts.factory import save
from palimpsest.tiny.classifiers import CIFAR, FACTORY, Recipe
from palimpsest.tiny.resnet import ResNet, resnet, whiten
from palimpsest.train.randomness import generator
from palimpsest_models.masters import Masters, begun_in, named
from palimpsest_models.precision import measured


def train(
    samples: Pictures,
    classes: int,
    recipe: Recipe,
    *,
    seed: int,
    precision: torch.dtype = torch.bfloat16,
    checkpoint: Path | None = None,
    tell: Callable[[str], object] | None = None,
) -> ResNet:
    """A classifier of `samples`, float32, in evaluation mode.

    Every draw is a function of (seed, epoch), so a run that goes on from its checkpoint equals an unbroken one.

    Args:
        classes: how many logits, also where some class has no sample.
        precision: what network and Muon's iteration compute in; a run goes on in the one that it began in.
        checkpoint: a file that is written after each epoch and read at the start where it is this run's.
        tell: called with a line after each epoch.

    Cost: 0.17 s a step of 256 pictures of 32 px at width 32 on one core with bfloat16 units (AMX).
    """
    torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator(seed, "weights"))))
    model = resnet(classes, recipe.width)
    whiten(model, samples.pixels(torch.randperm(len(samples), generator=generator(seed, "whiten"))[:2000]))
    model.backbone.stem.requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = begun_in(checkpoint, _identity(recipe, seed)) or precision
    masters = Masters(
        model,
        lr=recipe.lr,
        average=recipe.average,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        dtype=precision,
    )
    padded = _padded(samples.images, recipe.shift)
    start, done = time.perf_counter(), _resume(masters, checkpoint, recipe, seed)
    steps = -(-len(samples) // recipe.batch)
    for epoch in range(done, recipe.epochs):
        draw = generator(seed, "epoch", epoch)
        order = torch.randperm(len(samples), generator=draw)
        total = 0.0
        for k, rows in enumerate(order.split(recipe.batch)):
            images = _augmented(padded, rows, epoch, recipe, draw).to(precision)
            loss = F.cross_entropy(model(images).float(), samples.labels[rows], label_smoothing=recipe.smoothing)
            loss.backward()
            masters.step(_triangle((epoch * steps + k + 1) / (recipe.epochs * steps + 1)), clip=5.0)
            total += float(loss.detach())
        _save_checkpoint(masters, checkpoint, recipe, seed, epoch + 1, precision)
        if tell is not None:
            seconds = time.perf_counter() - start
            tell(f"epoch {epoch + 1}/{recipe.epochs} loss {total / steps:.4f} {seconds:.0f} s")
    masters.show(masters.averages)
    model.float().requires_grad_(False)
    _measure_norms(model, padded, recipe, generator(seed, "norms"))
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, samples: Pictures, batch: int = 500) -> Tensor:
    """(n, classes) float32 of all samples."""
    rows = torch.arange(len(samples)).split(batch)
    return torch.cat([model(samples.pixels(r).to(memory_format=torch.channels_last)) for r in rows]).float()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's, in percent."""
    return 100 * float((scores.argmax(1) == labels).float().mean())


def reached(
    scores: Mapping[str, Tensor], data: Dataset, test: Dataset, request: ForgetRequest | None
) -> dict[str, float]:
    """Accuracies in percent on "test", "retain" and, where something was never seen, "forget".

    Args:
        scores: logits of all of "train" and "test".
    """
    gone = torch.zeros(len(data.samples), dtype=torch.bool) if request is None else chosen(data, request)
    found = {
        "test": accuracy(scores["test"], test.samples.labels),
        "retain": accuracy(scores["train"][~gone], data.samples.labels[~gone]),
    }
    return found if request is None else found | {"forget": accuracy(scores["train"][gone], data.samples.labels[gone])}


def _triangle(t: float, peak: float = 0.2) -> float:
    return min(t / peak, (1 - t) / (1 - peak))


def _padded(images: Tensor, shift: int) -> Tensor:
    """(n, H + 2 shift, W + 2 shift, 3) uint8: channels last, so that a gathered batch already is."""
    if not shift:
        return images.permute(0, 2, 3, 1).contiguous()
    grown = [F.pad(part.float(), [shift] * 4, mode="reflect").byte() for part in images.split(2000)]
    return torch.cat(grown).permute(0, 2, 3, 1).contiguous()


def _augmented(padded: Tensor, rows: Tensor, epoch: int, recipe: Recipe, draw: torch.Generator) -> Tensor:
    """(m, 3, H, W) in [0, 1], shifted at random; a picture is mirrored in every second epoch."""
    n, h, w = len(rows), padded.shape[1] - 2 * recipe.shift, padded.shape[2] - 2 * recipe.shift
    by = torch.randint(2 * recipe.shift + 1, (2, n, 1), generator=draw)
    ys, xs = by[0] + torch.arange(h), by[1] + torch.arange(w)
    if recipe.flip:
        mirrored = (rows * 2654435761 // 65536 + epoch) % 2 == 1  # a fixed half in even epochs, the others in odd ones
        xs = torch.where(mirrored[:, None], xs.flip(1), xs)
    return padded[rows[:, None, None], ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _measure_norms(model: ResNet, padded: Tensor, recipe: Recipe, draw: torch.Generator, pictures: int = 5000) -> None:
    """Running statistics belong to the averaged weights: measure them afresh."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
    model.train()
    rows = torch.randperm(len(padded), generator=draw)[:pictures]
    parts = [part for part in rows.split(250) if len(part) > 1]
    for number, part in enumerate(parts):
        model(_augmented(padded, part, number, recipe, draw))
    for part in norms:
        part.momentum = 0.1


# -- checkpoints -----------------------------------------------------------------------------------------


def _identity(recipe: Recipe, seed: int) -> str:
    return json.dumps({"recipe": asdict(recipe), "seed": seed}, sort_keys=True)


def _save_checkpoint(
    masters: Masters, file: Path | None, recipe: Recipe, seed: int, epochs: int, precision: torch.dtype
) -> None:
    if file is None:
        return
    meta = {"run": _identity(recipe, seed), "epochs": str(epochs), "precision": named(precision)}
    write_beside(file, lambda tmp: save_file(masters.state(), str(tmp), metadata=meta))


def _resume(masters: Masters, file: Path | None, recipe: Recipe, seed: int) -> int:
    """How many epochs are done; restores what they left."""
    if file is None or not file.is_file():
        return 0
    with safe_open(str(file), framework="pt") as f:
        meta = f.metadata()
        if meta["run"] != _identity(recipe, seed):
            return 0
        masters.restore({key: f.get_tensor(key) for key in f.keys()})  # noqa: SIM118 (safe_open is no dict)
    return int(meta["epochs"])


# -- the command -----------------------------------------------------------------------------------------


def without(data: Dataset, words: str) -> ForgetRequest | None:
    """What an oracle never sees: "" nothing, "random:0.1" a random tenth, else a forget request."""
    if not words:
        return None
    kind, _, share = words.partition(":")
    return drawn(data, float(share)) if kind == "random" else ForgetRequest.parse(words)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m palimpsest_models.train_classifier --data cifar10_jpeg --out runs/cifar [--without class:cat]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a data set with the splits train and test")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", default="", help="class:cat, random:0.1, samples:list.csv: never seen")
    for field, kind in (("epochs", int), ("batch", int), ("lr", float), ("width", int)):
        parser.add_argument(f"--{field}", type=kind, default=getattr(CIFAR, field))
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(measured())
    recipe = Recipe(epochs=asked.epochs, batch=asked.batch, lr=asked.lr, width=asked.width)
    data, test = read(asked.data, split="train"), read(asked.data, split="test")
    request = without(data, asked.without)
    kept = data.samples if request is None else split(data, request)["retain"]
    begin = time.process_time()
    checkpoint = asked.out / "checkpoint.safetensors"
    model = train(
        kept,
        len(data.classes),
        recipe,
        seed=asked.seed,
        precision=measured().dtype,
        checkpoint=checkpoint,
        tell=print,
    )
    seconds = time.process_time() - begin
    model.half().float()  # as it is stored
    scores = {"train": logits(model, data.samples), "test": logits(model, test.samples)}
    about = {"recipe": asdict(recipe), "seed": asked.seed, "without": asked.without}
    about |= {"accuracy": reached(scores, data, test, request)}
    about |= {"cpu_seconds": round(seconds, 1)}
    tensors = {key: value.half() for key, value in scores.items()}
    write_beside(asked.out / "logits.safetensors", lambda tmp: save_file(tensors, str(tmp)))
    arguments = {"classes": len(data.classes), "width": recipe.width}
    save(
        model,
        asked.out,
        factory=FACTORY,
        arguments=arguments,
        labels=data.classes,
        head="head",
        backbone="backbone",
        about=about,
    )
    print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main()
