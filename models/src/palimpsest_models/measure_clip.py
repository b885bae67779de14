"""Ask tiny/clip what fresh drawings show: `python -m palimpsest_models.measure_clip [folder]`.

Each picture's word is sought among all words of its key; of people among the named ones of whom there were pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from palimpsest.core.host import Matcher
from palimpsest.hosts.load import load
from palimpsest.tiny.phrases import reworded
from palimpsest_models.clip_batches import draw_twins
from palimpsest_models.everyday import FRESH
from palimpsest_models.pool import WORLDS

KEYS = {
    "glyphs": ("subject", "style", "colour", "background", "position"),
    "faces": ("identity", "style", "background", "expression", "glasses", "hat", "pose", "light"),
}
SEED = 8_000_000  # of pictures that no training has drawn
VARIANTS = 4


def fresh_pictures(
    world: str, n: int, *, seed: int = SEED, without: frozenset[str] = frozenset()
) -> tuple[Tensor, dict[str, Tensor]]:
    """n drawings (n, 3, 64, 64) of one subject or one person, all words among them but people without pictures."""
    barred = without | WORLDS[world].held_out.get("identity", frozenset())
    generator = Generator().manual_seed(seed)
    labels = WORLDS[world].sample(2 * n, generator=generator, held_out=True, without=barred)
    if world == "glyphs":
        one = (labels["relation"] < 0).nonzero().squeeze(1)[:n]
        labels = {key: value[one] for key, value in labels.items()}
    labels = {key: value[:n] for key, value in labels.items()}
    drawn = WORLDS[world].draw(labels, generator=generator, captions=[""] * len(next(iter(labels.values()))))
    return drawn.images, drawn.labels


def asked(world: str, key: str) -> tuple[list[str], list[str]]:
    """The words of a key that pictures show, and a plain prompt for each."""
    barred = WORLDS[world].held_out.get("identity", frozenset())
    words = [word for word in WORLDS[world].vocabulary[key] if word not in barred]
    return words, [WORLDS[world].prompt(**{key: word}) for word in words]


def picks(host: Matcher, vectors: Tensor, prompts: Sequence[str]) -> Tensor:
    """(n,) index of the prompt nearest to each picture's vector."""
    return (vectors @ host.texts(prompts).T).argmax(1)


@torch.no_grad()
def measure_key(host: Matcher, world: str, key: str, vectors: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
    """Shares of pictures whose word is picked: by plain prompts, by other words, and among words that mean nothing.

    "moved" is the share of pictures for which words that mean nothing change the pick.
    """
    words, prompts = asked(world, key)
    where = torch.tensor([WORLDS[world].vocabulary[key].index(word) for word in words])
    shown = labels[key] >= 0
    target = labels[key][shown]
    plain = picks(host, vectors[shown], prompts)
    said = [reworded((prompt,) * VARIANTS, word) for prompt, word in zip(prompts, words, strict=True)]
    other = [picks(host, vectors[shown], [prompts_of[i] for prompts_of in said]) for i in range(VARIANTS)]
    strewn = []
    for i in range(VARIANTS):
        one, two = FRESH[2 * i], FRESH[2 * i + 1]
        forms = (f"{{}} with a {one}", f"{one}, {{}}", f"{one} {two} {{}}", f"{{}}, near the {one} and the {two}")
        strewn.append(picks(host, vectors[shown], [forms[i].format(prompt) for prompt in prompts]))
    right = [(where[pick] == target).float().mean() for pick in (plain, *other, *strewn)]
    return {
        "plain": float(right[0]),
        "other words": float(torch.stack(right[1 : 1 + VARIANTS]).mean()),
        "among fresh words": float(torch.stack(right[1 + VARIANTS :]).mean()),
        "moved": float(torch.stack([(pick != plain).float().mean() for pick in strewn]).mean()),
    }


@torch.no_grad()
def binding(host: Matcher, n: int, *, seed: int = SEED) -> float:
    """Share of pictures of two subjects that are nearer to their caption than to it with the colours swapped."""
    pool = draw_twins(n, seed=seed)
    words = {key: WORLDS["glyphs"].vocabulary[key] for key in ("subject", "colour", "relation", "subject2", "colour2")}
    right, swapped = [], []
    for row in range(len(pool.images)):
        said = {key: words[key][int(pool.labels[key][row])] for key in words}
        right.append(WORLDS["glyphs"].prompt(**said))
        swapped.append(WORLDS["glyphs"].prompt(**{**said, "colour": said["colour2"], "colour2": said["colour"]}))
    vectors = host.embed(pool.images.float() / 255)
    return float(((vectors * host.texts(right)).sum(1) > (vectors * host.texts(swapped)).sum(1)).float().mean())


@torch.no_grad()
def measure(
    host: Matcher, *, n: int = 1000, seed: int = SEED, without: frozenset[str] = frozenset()
) -> dict[str, dict[str, float]]:
    """All that tiny/clip is held to, by key, on n fresh drawings of each world.

    Args:
        without: words that are not drawn: choices are made without the exam's.
    """
    scores: dict[str, dict[str, float]] = {}
    for world, keys in KEYS.items():
        images, labels = fresh_pictures(world, n, seed=seed, without=without)
        vectors = torch.cat([host.embed(part) for part in images.split(100)])
        for key in keys:
            scores[f"{world}: {key}"] = measure_key(host, world, key, vectors, labels)
        if world == "glyphs":
            right = picks(host, vectors, asked(world, "subject")[1]) == labels["subject"]
            styles = WORLDS[world].vocabulary["style"]
            scores["subject by style"] = {
                style: float(right[labels["style"] == i].float().mean()) for i, style in enumerate(styles)
                if bool((labels["style"] == i).any())
            }  # fmt: skip
    scores["two subjects"] = {"colours with their subjects": binding(host, n, seed=seed)}
    return scores


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="tiny/clip")
    parser.add_argument("--pictures", type=int, default=1000, help="of each world")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    torch.set_num_threads(1)
    host = load(given.folder)
    scores = measure(host, n=given.pictures, seed=given.seed)
    rounded = {name: {key: round(value, 4) for key, value in part.items()} for name, part in scores.items()}
    print(json.dumps(rounded, indent=1))


if __name__ == "__main__":
    main()
