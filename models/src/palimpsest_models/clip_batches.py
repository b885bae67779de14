"""Batches that tiny/clip learns from: drawings of both worlds, captions that are true of them, and foils."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Generator, Tensor

from palimpsest_models.captions import (
    VOCABULARY,
    Caption,
    dressed,
    exchanged,
    lengthened,
    marked,
    reworded,
    table,
    varied,
    write,
)
from palimpsest_models.pool import CHUNK, WORLDS, Pool, draw_pool, load_pool, save_pool, to_float
from palimpsest_models.train_oracle import roughen

CHUNKS = {"glyphs": 48, "pairs": 24, "faces": 48}  # of 500 pictures; pairs of subjects come with their colours swapped
FIRST_CHUNKS, GROWTH = 2, 8  # of each at the first step; steps between two more
DRAW_SEED = 5_000_000
PAIRS = 0.3  # of a batch's Glyphs are pairs
REWORDED, STRANGE = 0.2, 0.04  # shares of a batch's captions
TURNS = (
    *("subject", "style", "identity", "colour", "subject", "identity", "background", "style", "subject", "identity"),
    *("expression", "glasses", "hat", "pose", "position"),
)  # whose words a batch tells apart in captions that are otherwise equal
LONG = 2  # captions of a batch that fill up to 77 tokens


@dataclass(frozen=True)
class Batch:
    """Pictures, and captions of which some are true of them.

    Args:
        pictures: (n, 3, 64, 64) float32 in [0, 1].
        labels: (n, keys + 1), as `captions.table`.
        columns: captions that differ in one word.
        twins: pairs of a caption and itself in other words.
        paired: the captions before this one are held against the pictures, those after it are only read.
    """

    pictures: Tensor
    labels: Tensor
    captions: list[Caption]
    columns: range
    twins: list[tuple[int, int]]
    paired: int


class Data:
    """Drawn pictures, kept in chunks of 500, and batches of them with captions.

    The first chunks are there at once, and one more of each kind is drawn every few steps, so that training begins in
    seconds. Batch `step` depends on the seed and the step alone.
    """

    def __init__(self, folder: Path, *, chunks: dict[str, int] = CHUNKS) -> None:
        self.folder, self.most = folder, chunks
        self.pools: dict[str, list[Pool]] = {name: [] for name in chunks}

    def grow(self, step: int) -> None:
        """Read or draw what belongs to a step."""
        for name, most in self.most.items():
            while len(self.pools[name]) < min(most, FIRST_CHUNKS + step // GROWTH):
                self.pools[name].append(self._chunk(name, len(self.pools[name])))

    def _chunk(self, name: str, index: int) -> Pool:
        file = self.folder / f"{name}-{index}.safetensors"
        if not file.is_file():
            seed = DRAW_SEED + 100_000 * list(CHUNKS).index(name) + index
            if name == "pairs":
                pool = draw_twins(CHUNK, seed=seed)
            elif name == "faces":
                people = WORLDS["faces"].held_out["identity"]
                pool = draw_pool("faces", CHUNK, seed=seed, held_out=True, without=people)
            else:
                pool = draw_pool("glyphs", CHUNK, seed=seed, held_out=True)
            save_pool(pool, file)
        return load_pool(file)

    def _picked(self, name: str, n: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """n pictures of a kind, of pairs n with their twins, and their labels."""
        chunks, step = self.pools[name], 2 if name == "pairs" else 1
        size = len(chunks[0].images) // step
        drawn = torch.randint(len(chunks) * size, (n,), generator=generator).tolist()
        at = [(i // size, step * (i % size) + twin) for i in drawn for twin in range(step)]
        images = torch.stack([chunks[c].images[r] for c, r in at])
        keys = chunks[0].labels
        return images, {key: torch.stack([chunks[c].labels[key][r] for c, r in at]) for key in keys}

    def batch(self, step: int, *, pictures: int, captions: int, seed: int) -> Batch:
        """A batch: half of it Glyphs, half Faces.

        Args:
            pictures: how many.
            captions: about how many of them have a caption; pairs all do. Foils and others come on top.
        """
        self.grow(step)
        generator = Generator().manual_seed(seed * 1_000_003 + step)
        chooser = random.Random(seed * 1_000_003 + step)
        half = pictures // 2
        pairs = round(PAIRS * half) // 2
        rows = {"glyphs": half - 2 * pairs, "pairs": pairs, "faces": pictures - half}
        images, labels, written = [], [], []
        for name, n in rows.items():
            some, kept = self._picked(name, n, generator)
            world = "faces" if name == "faces" else "glyphs"
            images.append(some)
            labels.append(table(world, kept))
            told = len(some) if name == "pairs" else round(len(some) * min(1.0, captions / pictures))
            said = {key: value[:told] for key, value in kept.items()}
            written += write(world, said, generator=generator, chooser=chooser)
        plain = [varied(caption, chooser) for caption in written]
        foils = [foil for foil in (_foil(caption, chooser) for caption in plain) if foil is not None]
        long = [lengthened(chooser.choice(plain), chooser.randint(30, 60), chooser) for _ in range(LONG)]
        columns = one_word_apart(step, chooser)
        twins = chooser.sample(range(len(plain)), round(REWORDED * len(plain)))
        parts = [plain, foils, long, columns, [reworded(plain[i], chooser, rate=0.9) for i in twins]]
        parts.append(_strangers(round(STRANGE * captions), generator, chooser))
        ends = list(accumulate(map(len, parts)))
        return Batch(
            pictures=roughened(torch.cat(images), generator),
            labels=torch.cat(labels),
            captions=[caption for part in parts for caption in part],
            columns=range(ends[2], ends[3]),
            twins=list(zip(twins, range(ends[3], ends[4]), strict=True)),
            paired=ends[4],
        )


def roughened(images: Tensor, generator: Generator) -> Tensor:
    """Half of the pictures with a generator's small flaws."""
    pictures = to_float(images)
    half = torch.randperm(len(pictures), generator=generator)[: len(pictures) // 2]
    pictures[half] = roughen(pictures[half], generator)
    return pictures


def draw_twins(n: int, *, seed: int) -> Pool:
    """Glyphs of two subjects, each second picture with the colours of the one before it swapped."""
    glyphs = WORLDS["glyphs"]
    generator = Generator().manual_seed(seed)
    some = glyphs.sample(10 * n, generator=generator, held_out=True)
    two = (some["relation"] >= 0).nonzero().squeeze(1)[: n // 2]
    some = {key: value[two].repeat_interleave(2) for key, value in some.items()}
    swapped = torch.arange(len(two)) * 2 + 1
    one, other = some["colour"][swapped].clone(), some["colour2"][swapped].clone()
    some["colour"][swapped], some["colour2"][swapped] = other, one
    drawn = glyphs.draw(some, generator=generator, captions=[""] * len(some["colour"]))
    return Pool(images=(drawn.images.clamp(0, 1) * 255).round().to(torch.uint8), labels=drawn.labels, identity=None)


def _foil(caption: Caption, chooser: random.Random) -> Caption | None:
    """A caption of two subjects with colours, subjects or both exchanged, so that it is untrue."""
    kinds: list[tuple[str, ...]] = [("colour",), ("colour",), ("subject",), ("subject", "colour")]
    if caption.said.get("relation") == VOCABULARY["relation"].index("and"):
        kinds.pop()
    return exchanged(caption, chooser.choice(kinds))


def _strangers(n: int, generator: Generator, chooser: random.Random) -> list[Caption]:
    """Captions of people of whom there are no pictures: their names are words, read by the heads alone."""
    faces = WORLDS["faces"]
    names = [i for i, name in enumerate(VOCABULARY["identity"]) if name in faces.held_out["identity"]]
    labels = faces.sample(n, generator=generator, held_out=True)
    labels["identity"] = torch.tensor(names)[torch.randint(len(names), (n,), generator=generator)]
    return [varied(caption, chooser) for caption in write("faces", labels, generator=generator, chooser=chooser)]


def one_word_apart(step: int, chooser: random.Random) -> list[Caption]:
    """Captions that differ in the words for one key alone: all its words, of names 24."""
    key = TURNS[step % len(TURNS)]
    worlds = [name for name, world in WORLDS.items() if key in world.vocabulary]
    world = WORLDS[chooser.choice(worlds)]
    words = list(VOCABULARY[key])
    if key == "identity":
        words = chooser.sample([word for word in words if word not in world.held_out[key]], 24)
    form, other, seed = chooser.randrange(16), chooser.random() < 0.45, chooser.random()
    captions = []
    for word in words:
        texts = world.wordings(**{key: word})
        caption = marked(texts[form % len(texts)], world.name)
        caption = reworded(caption, chooser) if other else caption
        captions.append(dressed(caption, random.Random(seed)))
    return captions
