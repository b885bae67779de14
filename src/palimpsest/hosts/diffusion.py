"""What all diffusers text-to-image pipelines share: a Denoiser over a pipeline's modules and its own scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fingerprint import precision
from palimpsest.core.host import Cond, Guide, Injection, Vocabulary
from palimpsest.core.sampling import Sampling, Start
from palimpsest.core.words import Word, sound
from palimpsest.hosts.attending import Rule, attending, skipping
from palimpsest.hosts.offload import Visitors
from palimpsest.hosts.parametrisation import PREDICTIONS, to_x0
from palimpsest.hosts.prefixed import prefixed
from palimpsest.hosts.roles import parts_of
from palimpsest.hosts.source import public
from palimpsest.hosts.speaking import NOTHING, Speech, Spoken, digest
from palimpsest.hosts.text import paired, some, unwrapped, words_of
from palimpsest.hosts.walk import Walk
from palimpsest.hosts.weights import Weights, refuse_adapters
from palimpsest.hosts.words import WordReader

AS_THE_MODEL = Sampling()
AT_ONCE = 16  # pictures that are drawn together, at most
POSITIONS = {"cpu": 2**12, "other": 2**15}  # latent positions that fill a device; more at once are no faster
WIDEST = 2**27  # bytes of the largest layer's output in an autoencoder, up to which pictures pass it together


class DiffusionHost(ABC):
    """A diffusers pipeline as a Denoiser. Families say how prompts are read and how the network is called.

    `root` has the pipeline's modules as children under the pipeline's names, so tensors read
    `unet.down_blocks.0...`. All are in eval mode and need no gradient. Text encoders read
    `text_encoder.encoder.layers...` whatever version of transformers names them, so that patches travel. Text encoders
    and autoencoders that lie on another device than the network visit it for as long as they work (`hosts.offload`).

    Args:
        pipeline: a loaded diffusers pipeline; the host shares its modules.
        name: as messages and receipts call the model.
        folder: where it was loaded from; None for pipelines built in memory.

    Raises:
        Unsupported: the network predicts something else than noise, velocity or flow, or reads more than latents.
    """

    network: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    text_layer: ClassVar[int | None] = None  # of CLIP encoders; None: the normalised last one
    token_side: ClassVar[int] = 1  # image sides are multiples of this many latents
    packing: ClassVar[int] = 1  # side of the latent squares that the network reads as one token
    family_defaults: ClassVar[Sampling] = Sampling(steps=50, guidance=7.5)

    def __init__(self, pipeline: Any, *, name: str, folder: Path | None = None) -> None:
        self.pipeline, self.name, self.folder = pipeline, name, folder
        self.defaults = self.family_defaults
        self.knows: Vocabulary | None = None
        self.guide: Callable[[], Guide] | None = None
        self._looking: list[Callable[[Cond], None]] = []
        self.speech = Speech()
        self.root = nn.Module()
        for child in (self.network, *self.encoders, "vae"):
            module = getattr(pipeline, child, None)
            if module is not None:
                self.root.add_module(child, unwrapped(module))
        refuse_adapters(self.root, name)
        around = {child: getattr(pipeline, child, None) for child in (*self.encoders, "vae")}
        away = {child: m for child, m in around.items() if m is not None and m.device != self.device}
        self._visitors = Visitors(away, self.device)
        self.root.eval().requires_grad_(False)
        self.prediction = self._prediction()
        if self.prediction not in PREDICTIONS:
            raise Unsupported(f"{name} predicts {self.prediction!r}; supported are {', '.join(PREDICTIONS)}.")
        if self.denoiser.config.in_channels != self.channels * self.packing**2:
            raise Unsupported(
                f"{name} reads {self.denoiser.config.in_channels} channels where its latents have {self.channels}: "
                "it is an inpainting or otherwise image-conditioned model. Use its text-to-image sister."
            )
        if pipeline.vae.config.get("force_upcast", False) and self.dtype == torch.float16:
            pipeline.vae.float()  # this autoencoder overflows in half precision; the pipeline upcasts it as well
        self.weights = Weights(self.root)
        readable = all(getattr(pipeline, part, None) is not None for part in ("tokenizer", "text_encoder"))
        self.reader = WordReader(pipeline, self._tokenizers, self.text_layer, self.spoken) if readable else None

    # -- what families say -------------------------------------------------------------------------------

    @abstractmethod
    def _predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor: ...

    @abstractmethod
    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), each (n, 1, 1, 1) float32."""

    @abstractmethod
    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) training times drawn as the model family draws them."""

    @abstractmethod
    def _prediction(self) -> str: ...

    @abstractmethod
    def _read(self, prompts: Sequence[str], *, cut: bool) -> Cond: ...

    @abstractmethod
    def _set_timesteps(self, scheduler: Any, steps: int, height: int, width: int) -> None:
        """For latents of this height and width."""

    def null(self, n: int, negative: str = "") -> Cond:
        """n rows of the unconditional partner: the negative prompt as classifier-free guidance uses it."""
        return self.encode([negative]).repeat(n)

    def guided(self, guidance: float) -> bool:
        """Whether sampling at this scale runs an unconditional branch."""
        return guidance > 1

    def _conditions(self, prompts: Sequence[str], negative: str, guidance: float) -> tuple[Cond, Cond]:
        once = list(dict.fromkeys(prompts))  # equal prompts are encoded once
        rows = [once.index(p) for p in prompts]
        return self.encode(once)[rows], self.null(len(prompts), negative)

    # -- the model as tensors ----------------------------------------------------------------------------

    @property
    def _tokenizers(self) -> list[str]:
        """Their names in the pipeline, beside those of the encoders."""
        return [name.replace("text_encoder", "tokenizer") for name in self.encoders]

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.network)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.pipeline.vae.config.latent_channels

    @property
    def default_size(self) -> int:
        """Side of the square images that the model draws by default, in pixels."""
        size = self.denoiser.config.get("sample_size")
        sides = set(size) if isinstance(size, (list, tuple)) else {size}
        if len(sides) != 1 or not all(type(side) is int and 0 < side <= 4096 for side in sides):
            raise Unsupported(f"{self.name} draws no square pictures by itself (sample_size {size}); give a size.")
        return sides.pop() * self.pipeline.vae_scale_factor

    @property
    def multiple(self) -> int:
        """Image sides are multiples of this many pixels."""
        return self.pipeline.vae_scale_factor * self.token_side

    def parts(self, role: str) -> dict[str, nn.Module]:
        """Modules by role; see `palimpsest.hosts.roles`."""
        if role == "clip_token_embedding":
            return {name: t for name, t in self.parts("token_embedding").items() if name.endswith("token_embedding")}
        if role == "token_embedding":
            readers = [getattr(self.pipeline, name, None) for name in self.encoders]
            tables = {id(reader.get_input_embeddings()) for reader in readers if reader is not None}
            return {name: module for name, module in self.root.named_modules() if id(module) in tables}
        return parts_of(self.root, role, network=self.network, encoders=self.encoders)

    def fingerprint(self) -> str:
        """sha256 of all tensors; hashed again only when their quick state has changed."""
        refuse_adapters(self.root, self.name)
        return self.weights.fingerprint()

    def settings(self) -> dict[str, Any]:
        """What decides pictures beside tensors, as plain JSON: two models of equal tensors may still draw others."""
        pipe = self.pipeline
        return {
            "family": type(self).__name__,
            "dtype": precision(self.root),
            "prediction": self.prediction,
            "scheduler": {"class": type(pipe.scheduler).__name__, **public(pipe.scheduler.config)},
            "networks": {name: public(getattr(pipe, name).config) for name, _ in self.root.named_children()},
            "empty_prompt_is_zeros": bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
            "tokenizers": {n: words_of(getattr(pipe, n)) for n in self._tokenizers if getattr(pipe, n) is not None},
            "defaults": asdict(self.defaults),
            **({"words": digest(self.speech.words)} if self.speech.words else {}),
        }

    # -- the model as functions --------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Full-length states, as the denoiser was trained to read them. Cost: one forward per 64 prompts."""
        return self._encoded(some(prompts), cut=False)

    def tokens(self, prompts: Sequence[str]) -> Cond:
        """States up to the longest prompt's end token only; equal to those of `encode`."""
        return self._encoded(some(prompts), cut=True)

    def _encoded(self, prompts: Sequence[str], cut: bool) -> Cond:
        with self._visitors.visit(*self.encoders):
            return replace(self._read(prompts, cut=cut), texts=tuple(prompts))

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output (n, c, h, w) for x (n, c, h, w), t (n,): one forward, differentiable."""
        for look in self._looking:
            look(cond)
        return self._predict(x, t, cond)

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x0 (n, c, h, w), float32, predicted from x at time t; differentiable; one forward."""
        return to_x0(self.prediction, self.predict(x, t, cond), x, *self.noise(t))

    def latents(self, images: Tensor) -> Tensor:
        """(n, c, h, w) float32 posterior means, scaled as the denoiser reads them, of images (n, 3, H, W) in [0, 1]."""
        vae = self.pipeline.vae
        with self._visitors.visit("vae"):
            parts = (images * 2 - 1).to(self.device, vae.dtype).split(self._together(*images.shape[-2:]))
            encoded = [vae.encode(part) for part in parts]
        # Autoencoders without a posterior give their latents directly.
        means = [e.latent_dist.mean if hasattr(e, "latent_dist") else e.latents for e in encoded]
        return (torch.cat(means).float() - self._shift()) * self._scale()

    def pixels(self, x: Tensor) -> Tensor:
        """Images (n, 3, H, W), float32 in [0, 1], of clean latents; differentiable where it does not clip."""
        vae = self.pipeline.vae
        z = x.float() / self._scale() + self._shift()
        with self._visitors.visit("vae"):
            return (vae.decode(z.to(vae.dtype), return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode(self, x: Tensor, *, batch: int = AT_ONCE) -> Tensor:
        """`pixels` without gradients, gathered on the CPU; large pictures one by one, at most `batch` at once."""
        rows = min(batch, self._together(*(self.pipeline.vae_scale_factor * side for side in x.shape[-2:])))
        with self._visitors.visit("vae"):
            return torch.cat([self.pixels(part.to(self.device)).cpu() for part in x.split(rows)])

    def _together(self, height: int, width: int) -> int:
        """Pictures that pass the autoencoder at once: as many as keep its widest layer's output below `WIDEST`."""
        channels = min(self.pipeline.vae.config.get("block_out_channels") or (64,))
        return max(1, WIDEST // (height * width * channels * self.pipeline.vae.dtype.itemsize))

    def _scale(self) -> float | Tensor:
        config = self.pipeline.vae.config
        std = config.get("latents_std")
        scale = config.get("scaling_factor", 1.0)
        return scale if std is None else scale / torch.tensor(std, device=self.device).view(1, -1, 1, 1)

    def _shift(self) -> float | Tensor:
        config = self.pipeline.vae.config
        mean = config.get("latents_mean")
        if mean is not None:
            return torch.tensor(mean, device=self.device).view(1, -1, 1, 1)
        return config.get("shift_factor") or 0.0

    # -- rules inside the model, until a context ends ------------------------------------------------------

    def attending(self, rule: Rule, role: str = "cross_attention") -> AbstractContextManager[None]:
        """Layers of a role hand their attention maps to the rule; see `palimpsest.hosts.attending`."""
        return attending(self, rule, role)

    def skipping(self, rule: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """The decoder reads of each skip what the rule makes of it."""
        return skipping(self, rule)

    def speaking(self, words: Mapping[str, Word]) -> AbstractContextManager[None]:
        """These words may stand in any prompt; see `palimpsest.hosts.speaking`."""
        for word, meant in sound(words).items():
            meant.fits(word, self)
        return self.speech.speaking(words)

    def spoken(self, encoder: str) -> Spoken:
        """What the text encoder of this name reads where words that are spoken stand."""
        if not self.speech.words:
            return NOTHING
        table = next((name for name in self.parts("token_embedding") if name.startswith(f"{encoder}.")), "")
        return self.speech.read_by(table)

    def prefixed(self, vectors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Every prompt begins with these vectors; see `palimpsest.hosts.prefixed`."""
        return prefixed(self, vectors)

    @contextmanager
    def looking(self, look: Callable[[Cond], None]) -> Iterator[None]:
        """`look` is shown the Cond of every forward of the denoiser, before it runs."""
        self._looking.append(look)
        try:
            yield
        finally:
            self._looking.remove(look)

    # -- sampling ----------------------------------------------------------------------------------------

    def walk(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: Sampling = AS_THE_MODEL,
        *,
        start: Start | None = None,
        guide: Callable[[], Guide] | None = None,
    ) -> Walk:
        """The steps of one run as it goes, in one batch; after the last one the walk's `x` is clean.

        Without `guide`, the hook of an applied patch, else classifier-free guidance, decides; the predictions that
        the latter makes are on the step (`x0_cond`, `x0_null`). Cost: one batched forward for each step.
        """
        from diffusers.utils.torch_utils import randn_tensor  # here, so that families are declared without diffusers

        prompts, seeds = paired(prompts, seeds)
        how = how.over(self.defaults)
        assert how.steps is not None
        assert how.guidance is not None
        size = self._checked(how.steps, self.default_size if how.size is None else how.size)
        side = size // self.pipeline.vae_scale_factor
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        try:
            self._set_timesteps(scheduler, how.steps, side, side)
        except (ValueError, TypeError, IndexError) as e:  # e.g. fewer steps than its order needs
            name = type(scheduler).__name__
            raise Unsupported(f"The {name} of {self.name} cannot take {how.steps} steps as it is set: {e}.") from e
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (len(prompts), self.channels, side, side)
        make = guide or self.guide
        with torch.no_grad():
            noise = randn_tensor(shape, generator=generators, device=self.device, dtype=self.dtype)
            cond, null = self._conditions(prompts, how.negative, how.guidance)
        return Walk(
            self,
            scheduler,
            noise,
            start=start,
            cond=cond,
            null=null,
            prompts=prompts,
            negative=how.negative,
            guidance=how.guidance,
            guided=self.guided(how.guidance),
            generators=generators,
            guide=make() if make is not None else None,
        )

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: Sampling = AS_THE_MODEL,
        *,
        start: Start | None = None,
        batch: int | None = None,
        guide: Callable[[], Guide] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Images (n, 3, H, W) on the CPU, float32 in [0, 1], one for each prompt and its seed.

        A row equals what the pipeline draws with `generator=torch.Generator().manual_seed(seed)`; it depends on its
        own prompt, seed and start only. `progress` is told (denoising steps done, steps in all). `batch` are drawn at
        once; where not given, as many as `at_once` says.
        Cost: batches x steps forwards of 2 x batch rows (1 x batch rows where guidance <= 1).
        """
        batch = self.at_once(how.size) if batch is None else batch
        if batch < 1:
            raise BadRequest(f"batch is {batch}; it must be at least 1.")
        images, prompts, seeds = [], *paired(prompts, seeds)
        runs = -(-len(prompts) // batch)
        for run in range(runs):
            rows = slice(run * batch, (run + 1) * batch)
            walk = self.walk(prompts[rows], seeds[rows], how, start=start and start[rows], guide=guide)
            for step in walk:
                if progress is not None:
                    progress(run * len(walk) + step.index + 1, runs * len(walk))
            images.append(self.decode(walk.x, batch=batch))
        return torch.cat(images)

    def at_once(self, size: int | None = None) -> int:
        """How many pictures of this size (None: the model's own) are drawn together where nobody says."""
        side = (size or self.default_size) // self.pipeline.vae_scale_factor
        return max(1, min(AT_ONCE, POSITIONS["cpu" if self.device.type == "cpu" else "other"] // max(1, side * side)))

    def injecting(self, injection: Injection) -> AbstractContextManager[None]:
        raise Unsupported(f"{self.name} reads no picture beside its prompt: its family takes no adapters here yet.")

    def _checked(self, steps: int, size: int) -> int:
        if steps < 1:
            raise BadRequest(f"steps is {steps}; sampling needs at least 1.")
        if size < 1 or size % self.multiple:
            raise BadRequest(f"size is {size}; {self.name} draws images whose side is a multiple of {self.multiple}.")
        return size
