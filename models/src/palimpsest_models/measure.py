"""Read a tiny pipeline's pictures back: does each show what its prompt asked for?

`python -m palimpsest_models.measure sd` draws 1,000 captions with plain diffusers and prints the accuracies.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Generator, Tensor

from palimpsest.tiny import oracle, path
from palimpsest_models.pool import WORLDS

PIPELINES = {"glyphs": "sd", "faces": "portraits"}
SURE = {"glyphs": ("subject", "colour", "style", "background"), "faces": ("hat", "glasses", "style", "background")}


def words_asked(
    world: str, n: int, *, generator: Generator, without: str | None = None
) -> tuple[list[str], list[dict[str, str]]]:
    """Captions as in training and, for each, the words that it names."""
    source = WORLDS[world]
    labels = source.sample(n, generator=generator, without=frozenset({without} if without else ()))
    captions = source.caption(labels, generator=generator)
    return captions, [source.read(caption) for caption in captions]


@torch.no_grad()
def score_words(world: str, images: Tensor, asked: list[dict[str, str]]) -> dict[str, float]:
    """Share of asked-for words that the oracle reads, per key; "subject (two)" and the like for two-subject scenes.

    Args:
        images: (n, 3, 64, 64) in [0, 1].
        asked: for each picture, key -> word.
    """
    reader = oracle(world)
    read = reader.read(images)
    right: dict[str, list[float]] = {}
    for row, words in enumerate(asked):
        two = "subject2" in words
        hits = {}
        for key, word in words.items():
            hits[key] = float(reader.vocabulary[key][int(read[key][row].argmax())] == word)
            right.setdefault(f"{key} (two)" if two else key, []).append(hits[key])
        bound = [hits[key] for key in ("subject", "colour", "subject2", "colour2") if key in hits]
        if two:
            right.setdefault("both subjects and colours", []).append(min(bound))
    return {key: sum(values) / len(values) for key, values in sorted(right.items())}


@torch.no_grad()
def draw_prompts(name: str, prompts: list[str], *, steps: int, guidance: float, seed: int, batch: int = 50) -> Tensor:
    """Pictures (n, 3, 64, 64) of a pipeline folder by plain diffusers, one seeded stream for all."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(path(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = Generator().manual_seed(seed)
    parts = []
    for begin in range(0, len(prompts), batch):
        drawn = pipeline(
            prompts[begin : begin + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
            generator=generator,
        )
        parts.append(drawn.images)  # type: ignore[union-attr]
    return torch.cat(parts)


@torch.no_grad()
def share_sure(world: str, images: Tensor) -> float:
    """Share of pictures of which the oracle is more than 80 % certain on all of `SURE` at once."""
    sure = [read.amax(1) for key, read in oracle(world).read(images).items() if key in SURE[world]]
    return float((torch.stack(sure).amin(0) > 0.8).float().mean())


def measure(
    name: str, *, prompts: int = 1000, steps: int | None = None, guidance: float | None = None, seed: int = 5
) -> dict[str, float]:
    """Accuracy of a shipped pipeline per key, and how sure the oracle is of its pictures, also of the empty prompt's.

    Args:
        name: "sd", "portraits" or a retrain oracle such as "sd-without-star" (its word is then not asked for).
        steps, guidance: of the sampler; by default what the folder's `world.json` recommends.

    Cost: prompts x steps x 2 forwards; about 5 minutes for 1,000 prompts on one core.
    """
    world = next(world for world, base in PIPELINES.items() if name.startswith(base))
    without = name.partition("-without-")[2] or None
    own = json.loads((path(name) / "world.json").read_text(encoding="utf-8"))
    captions, asked = words_asked(world, prompts, generator=Generator().manual_seed(seed), without=without)
    steps = steps or int(own["steps"])
    guidance = float(own["guidance"]) if guidance is None else guidance
    images = draw_prompts(name, captions, steps=steps, guidance=guidance, seed=seed)
    scores = score_words(world, images, asked)
    single = torch.tensor(["subject2" not in words for words in asked])
    scores["one subject read with certainty > 0.8"] = share_sure(world, images[single])
    free = draw_prompts(name, [""] * 200, steps=steps, guidance=1.0, seed=seed)
    scores["empty prompt read with certainty > 0.8"] = share_sure(world, free)
    return scores


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scores = measure(given.name, prompts=given.prompts, steps=given.steps, guidance=given.guidance, seed=given.seed)
    print(json.dumps({key: round(value, 4) for key, value in scores.items()}, indent=1))


if __name__ == "__main__":
    main()
