"""Train a tiny pipeline: `python -m palimpsest_models.train --model sd|portraits [--without star] [--resume]`."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from palimpsest.tiny import path
from palimpsest_models.attention import PlainAttention
from palimpsest_models.latents import Latents, load_latents
from palimpsest_models.masters import Knots, Masters, begun_in, named, ramp
from palimpsest_models.measure import score_words, words_asked
from palimpsest_models.pool import WORLDS
from palimpsest_models.precision import measured
from palimpsest_models.train_autoencoder import LATENT_CHANNELS

TIMESTEPS = 1000
SAMPLING_STEPS = 20
GUIDANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a tiny pipeline's weights, with the pool and the shared parts."""

    world: str
    knots: Knots  # the step size's course; its last step is the run's
    batch: int = 128
    lr: float = 3e-3
    dropout: Knots  # share of captions left empty, up to each step
    focus: int | None = None  # from this step on, the times of empty captions lie where shapes are settled
    pool: int = 60_000
    seed: int = 0
    sampling_steps: int = 20  # that the finished model is measured with, as also:
    guidance: float = GUIDANCE  # larger scales sharpen small shapes (mouths) and wash out the styles

    @property
    def steps(self) -> int:
        """The run's length."""
        return self.knots[-1][0]

    def stretched(self, steps: int) -> Recipe:
        """The same course in another number of steps."""

        def through(knots: Knots) -> Knots:
            return tuple((round(at * steps / self.steps), value) for at, value in knots)

        focus = None if self.focus is None else round(self.focus * steps / self.steps)
        return replace(self, knots=through(self.knots), dropout=through(self.dropout), focus=focus)

    def dropped(self, step: int) -> float:
        """The share of captions that are left empty at a step."""
        return next(share for until, share in self.dropout if step < until)


# The run of `sd` has three parts. The first learns what captions say; the second starts warm and leaves four captions
# in ten empty, since a picture of nothing in particular is the hardest to draw; the third leaves six empty and noises
# their pictures to times at which shapes are settled. Portraits do with one: there a second part (to step 3000, three
# in ten empty) made empty prompts valid more often but cost expressions and glasses nine points.
RECIPES = {
    "sd": Recipe(
        world="glyphs",
        sampling_steps=25,
        knots=(
            (600, 1.0),
            (1200, 4 / 7),
            (1600, 0.0),
            (1650, 4 / 7),
            (2500, 0.0),
            (2550, 4 / 7),
            (3500, 4 / 7),
            (5000, 0.0),
        ),
        dropout=((1600, 0.1), (2500, 0.4), (5000, 0.6)),
        focus=2500,
    ),
    "portraits": Recipe(
        world="faces",
        guidance=3.0,
        knots=((600, 1.0), (1200, 4 / 7), (1750, 4 / 7), (2200, 0.0)),
        dropout=((2200, 0.1),),
    ),
}


def make_unet() -> UNet2DConditionModel:
    """A U-Net of 7 M parameters on (16, 8, 8) latents: 96 channels at 8x8, 160 at 4x4."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=(2, 4),  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Cosine noise, v-prediction: latents of 8x8 are small, so signal must last longer than with SD's schedule."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # unused by trailing steps; pipelines warn about 0
    )


def spread_times(n: int, generator: Generator, *, focused: Tensor | None = None) -> Tensor:
    """(n,) times spread evenly over the schedule; those of focused rows normal around 0.6 of it, deviation 0.18."""
    share = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    share = share[torch.randperm(n, generator=generator)]
    if focused is not None:
        share = torch.where(focused, 0.6 + 0.18 * torch.randn(n, generator=generator), share)
    return (share * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)


def velocity_loss(
    unet: UNet2DConditionModel, latents: Tensor, states: Tensor, times: Tensor, alphas: Tensor, generator: Generator
) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) latent.

    Args:
        latents: (n, 16, 8, 8), unit variance.
        states: (n, 32, 128) text states.
        times: (n,).
        alphas: (1000,) cumulative signal shares a.
    """
    noise = torch.randn(latents.shape, generator=generator)
    signal = alphas[times].sqrt()[:, None, None, None]
    rest = (1 - alphas[times]).sqrt()[:, None, None, None]
    noisy = signal * latents + rest * noise
    target = signal * noise - rest * latents
    guess = unet(noisy.to(states.dtype), times, states, return_dict=False)[0]
    return F.mse_loss(guess.float(), target)


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, states: Tensor, empty: Tensor, *, steps: int, guidance: float, generator: Generator
) -> Tensor:
    """(n, 32, 128) text states -> (n, 16, 8, 8) latents by DDIM with guidance, both branches in one batch."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    latents = torch.randn(len(states), LATENT_CHANNELS, 8, 8, generator=generator)
    both = torch.cat([empty.expand_as(states), states])
    for time_step in scheduler.timesteps:
        guess = unet(torch.cat([latents] * 2).to(states.dtype), time_step, both, return_dict=False)[0].float()
        without, with_text = guess.chunk(2)
        guess = without + guidance * (with_text - without)
        latents = scheduler.step(guess, time_step, latents, return_dict=False)[0]
    return latents


class Training:
    """A run: the U-Net, its masters, the pool's latents and the random state, from the first step to the last."""

    def __init__(
        self, recipe: Recipe, shared: Path, work: Path, *, without: str | None, precision: torch.dtype
    ) -> None:
        self.recipe, self.shared, self.work, self.without = recipe, shared, work, without
        self.precision = precision  # of the U-Net, Muon's iteration and the text encoder
        torch.manual_seed(recipe.seed)
        self.generator = Generator().manual_seed(recipe.seed)
        self.unet = make_unet()
        self.unet.set_attn_processor(PlainAttention())
        self.masters = Masters(self.unet, lr=recipe.lr, dtype=precision)
        self.tokenizer = CLIPTokenizer.from_pretrained(shared / "tokenizer")
        text = CLIPTextModel.from_pretrained(shared / "text_encoder", dtype=precision)
        self.text = text.eval().requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(shared / "vae").eval().requires_grad_(False)
        self.data: Latents = load_latents(recipe.world, recipe.pool, shared, work, without=without)
        self.alphas = make_scheduler().alphas_cumprod
        self.empty = self.tokenizer("", padding="max_length", return_tensors="pt").input_ids
        self.step = 0

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """(n, 32) token ids -> (n, 32, 128) in the run's precision."""
        return self.text(ids.long()).last_hidden_state

    def advance(self) -> float:
        """One update; returns its loss."""
        batch = self.recipe.batch
        rows = torch.randint(len(self.data.latents), (batch,), generator=self.generator)
        which = torch.randint(self.data.ids.shape[1], (batch,), generator=self.generator)
        ids = self.data.ids[rows, which].long()
        dropped = torch.rand(batch, generator=self.generator) < self.recipe.dropped(self.step)
        ids = torch.where(dropped[:, None], self.empty, ids)
        latents = self.data.latents[rows].float()
        focused = dropped if self.recipe.focus is not None and self.step >= self.recipe.focus else None
        times = spread_times(batch, self.generator, focused=focused)
        loss = velocity_loss(self.unet, latents, self.encode(ids), times, self.alphas, self.generator)
        loss.backward()
        self.masters.step(ramp(self.step, self.recipe.knots))
        self.step += 1
        return float(loss.detach())

    def score(self, *, prompts: int = 100, steps: int = SAMPLING_STEPS, guidance: float = GUIDANCE) -> dict[str, float]:
        """Share of asked-for words that the oracle reads in the averaged weights' pictures."""
        generator = Generator().manual_seed(12345)
        captions, asked = words_asked(self.recipe.world, prompts, generator=generator, without=self.without)
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.masters.show(self.masters.averages)
        latents = sample(
            self.unet, self.encode(ids), self.encode(self.empty), steps=steps, guidance=guidance, generator=generator
        )
        self.masters.show(self.masters.masters)
        with torch.no_grad():
            images = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample / 2 + 0.5
        self.preview(images)
        return score_words(self.recipe.world, images.clamp(0, 1), asked)

    def preview(self, images: Tensor) -> None:
        """Write the first pictures beside the checkpoint, to be looked at."""
        from PIL import Image

        grid = images[:40].clamp(0, 1).reshape(4, 10, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(256, 640, 3)
        Image.fromarray((grid * 255).byte().numpy()).save(self.work / "preview.png")

    def save(self) -> None:
        """Write a checkpoint beside the last one, then take its place."""
        tensors = {**self.masters.state(), "generator": self.generator.get_state()}
        beside = self.work / "checkpoint.safetensors.part"
        facts = {"step": self.step, "without": self.without, "steps": self.recipe.steps, "world": self.recipe.world}
        save_file(tensors, str(beside), metadata={"run": json.dumps(facts), "precision": named(self.precision)})
        beside.replace(self.work / "checkpoint.safetensors")

    def resume(self) -> None:
        """Continue from the last checkpoint, exactly.

        Raises:
            ValueError: the checkpoint belongs to another run.
        """
        with safe_open(str(self.work / "checkpoint.safetensors"), framework="pt") as stored:
            facts = json.loads(stored.metadata()["run"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        mine = {"without": self.without, "steps": self.recipe.steps, "world": self.recipe.world}
        if {key: facts[key] for key in mine} != mine:
            raise ValueError(f"{self.work} holds a run of {facts}, not of {mine}; give another --work or drop --resume")
        self.masters.restore(tensors)
        self.generator.set_state(tensors["generator"])
        self.step = facts["step"]

    def export(self, folder: Path) -> None:
        """Write the pipeline folder, float16, with the averaged weights."""
        half = make_unet()
        averages = dict(zip(self.masters.names, self.masters.averages, strict=True))
        half.load_state_dict(averages)
        text = CLIPTextModel.from_pretrained(self.shared / "text_encoder").half()
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(self.shared / "vae").half(),
            text_encoder=text,
            tokenizer=self.tokenizer,
            unet=half.half(),
            scheduler=make_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
        mark_precision(folder / "text_encoder" / "config.json")
        name_as_ever(folder / "text_encoder" / "model.safetensors")
        for name in ("vocab.json", "merges.txt"):  # newer versions of transformers leave them out, older ones need them
            shutil.copy(self.shared / "tokenizer" / name, folder / "tokenizer" / name)
        own = {"world": self.recipe.world, "steps": self.recipe.sampling_steps, "guidance": self.recipe.guidance}
        (folder / "world.json").write_text(json.dumps(own, indent=2) + "\n")


def name_as_ever(path: Path) -> None:
    """Give a text encoder's tensors the prefix `text_model.`: older versions of transformers find them by it alone."""
    tensors = load_file(str(path))
    named = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in tensors.items()}
    save_file(named, str(path), metadata={"format": "pt"})


def mark_precision(path: Path) -> None:
    """Say float32 in a text encoder's configuration: readers that follow it then compute as the U-Net does."""
    settings = json.loads(path.read_text())
    settings.pop("torch_dtype", None)
    settings["dtype"] = "float32"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def run(training: Training, folder: Path, *, every: int) -> None:
    """Train to the recipe's last step; every `every` steps score, save a checkpoint and export the folder."""
    start, mean = time.time(), 0.0
    first = training.step
    while training.step < training.recipe.steps:
        mean += training.advance()
        step = training.step
        if step % 50 == 0:
            seconds = time.time() - start
            pace = f"{seconds / (step - first):.2f} s a step"
            print(f"{step}/{training.recipe.steps} loss {mean / 50:.4f} {pace}", flush=True)
            mean = 0.0
        if step % every == 0 or step == training.recipe.steps:
            training.save()
            training.export(folder)
            print(f"{step} read {json.dumps({k: round(v, 3) for k, v in training.score().items()})}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--without", help="a word that the model never sees (a retrain oracle)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--shared", type=Path, help="tokenizer, text_encoder and vae; those that are shipped by default"
    )
    parser.add_argument("--work", type=Path, help="pools and checkpoints; runs/MODEL[-without-WORD] by default")
    parser.add_argument("--out", type=Path, help="the pipeline folder; WORK/pipeline by default")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    given = parser.parse_args()
    recipe = RECIPES[given.model]
    if given.steps:
        recipe = recipe.stretched(given.steps)
    known = {word for group in WORLDS[recipe.world].vocabulary.values() for word in group}
    if given.without and given.without not in known:
        words = ", ".join(sorted(known))
        raise SystemExit(f"--without {given.without!r} is no word of {recipe.world}; its words: {words}")
    torch.set_num_threads(1)
    name = given.model + (f"-without-{given.without}" if given.without else "")
    work = given.work or Path("runs") / name
    work.mkdir(parents=True, exist_ok=True)
    begun = begun_in(work / "checkpoint.safetensors") if given.resume else None
    print(f"going on in {named(begun)}, as the run began" if begun else measured(), flush=True)
    training = Training(
        recipe,
        given.shared or path(given.model),
        work,
        without=given.without,
        precision=begun or measured().dtype,
    )
    if begun:
        training.resume()
    run(training, given.out or work / "pipeline", every=given.every)


if __name__ == "__main__":
    main()
