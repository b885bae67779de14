"""What a method may ask of a model. Methods are written against these protocols, never against a model family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from palimpsest.core.sampling import Sampling, Start
from palimpsest.core.vocabulary import Vocabulary as Vocabulary

if TYPE_CHECKING:
    from palimpsest.core.words import Word


@dataclass(frozen=True, kw_only=True)
class Cond:
    """A batch of encoded prompts.

    Args:
        states: (n, L, d) token states that cross- or joint attention reads.
        lengths: (n,) int64; tokens from the start token to the end token, both included. The last word's
            state is `states[i, lengths[i] - 2]`.
        pooled: (n, p) pooled states, for families that take them.
        extra: further per-sample tensors that the family's denoiser takes (first axis n).
        texts: the prompts themselves, where it is known what was encoded.
        further: where a second encoder's states stand behind the first's: their first position -> (n,) lengths.
    """

    states: Tensor
    lengths: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    further: Mapping[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Cond:
        """The chosen rows, as a Cond."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return replace(
            self,
            states=self.states[rows],
            lengths=self.lengths[rows],
            pooled=pooled,
            extra={k: v[rows] for k, v in self.extra.items()},
            texts=tuple(self.texts[i] for i in torch.arange(len(self))[rows].tolist()) if self.texts else (),
            further={start: lengths[rows] for start, lengths in self.further.items()},
        )

    def repeat(self, n: int) -> Cond:
        """Each row n times in a row: a, a, b, b, ..."""
        return self[torch.arange(len(self)).repeat_interleave(n)]

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Batches one after the other; all must have the same L."""
        first = conds[0]
        pooled = None if first.pooled is None else torch.cat([c.pooled for c in conds if c.pooled is not None])
        return Cond(
            states=torch.cat([c.states for c in conds]),
            lengths=torch.cat([c.lengths for c in conds]),
            pooled=pooled,
            extra={k: torch.cat([c.extra[k] for c in conds]) for k in first.extra},
            texts=tuple(t for c in conds for t in c.texts) if all(c.texts for c in conds) else (),
            further={start: torch.cat([c.further[start] for c in conds]) for start in first.further},
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of sampling, before the scheduler moves x.

    Args:
        host: the denoiser that is being sampled.
        index, total: this step's number, from 0, and how many there are.
        x: (n, c, h, w) noisy latents, `x = alpha(t) * x0 + sigma(t) * noise`.
        t: (n,) the model's own time.
        cond, null: the prompts and their unconditional partner (the empty or the negative prompt), encoded.
        prompts, negative: the same as text, for rules that read the prompt anew.
        guidance: the scale of classifier-free guidance.
        x0_cond, x0_null: (n, c, h, w) the x0 that classifier-free guidance predicted for this step anyway; None
            where it did not (a guide is set; guidance <= 1 needs no x0_null).
    """

    host: Denoiser
    index: int
    total: int
    x: Tensor
    t: Tensor
    cond: Cond
    null: Cond
    guidance: float
    prompts: tuple[str, ...] = ()
    negative: str = ""
    x0_cond: Tensor | None = None
    x0_null: Tensor | None = None

    def x0(self, *conds: Cond) -> tuple[Tensor, ...]:
        """The clean latents predicted under each condition, in one batched forward."""
        n = len(self.x)
        out = self.host.denoise(self.x.repeat(len(conds), 1, 1, 1), self.t.repeat(len(conds)), Cond.cat(list(conds)))
        return tuple(out[i * n : (i + 1) * n] for i in range(len(conds)))


Guide = Callable[[Step], Tensor]
"""Turns a step into the guided x0 (n, c, h, w). One Guide serves one run of sampling and may keep state."""


class Walk(Protocol):
    """The steps of one run of sampling as it goes; once exhausted, `x` holds the clean latents (n, c, h, w)."""

    x: Tensor

    def __iter__(self) -> Iterator[Step]: ...

    def __next__(self) -> Step: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Tokens of a picture that cross-attention reads beside the text: softmax(q K^T) V with K, V of their own.

    Args:
        keys, values: by the name of a cross-attention module, its further projection (out, d).
        tokens: (1 or rows, k, d) of the picture.
        scale: weight of what the tokens add; one for all layers, or by layer.
        area: (rows, 1, h, w) in [0, 1], where they act; None: everywhere.
    """

    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    tokens: Tensor
    scale: float | Mapping[str, float] = 1.0
    area: Tensor | None = None


@runtime_checkable
class Host(Protocol):
    """A model, seen as named tensors. `root` owns every tensor that a patch may name.

    `parts(role)` gives modules by what they do, named as in `root.named_modules()`. Roles: "denoiser",
    "text_encoder", "token_embedding", "clip_token_embedding", "autoencoder", "cross_attention", "self_attention",
    "cross_key", "cross_value", "cross_query", "cross_out", "self_query", "self_key", "self_value", "text_projection",
    "pooled_projection", "text_block", "bottleneck", "decoder_block", "backbone", "head". A role that the model lacks
    gives {}.
    """

    name: str
    root: nn.Module
    knows: Vocabulary | None  # the words of the drawn world that it was trained on; None where nobody knows them

    @property
    def device(self) -> torch.device: ...

    def parts(self, role: str) -> dict[str, nn.Module]: ...

    def fingerprint(self) -> str: ...


@runtime_checkable
class Denoiser(Host, Protocol):
    """A text-to-image diffusion or flow model that predicts x0, however it was trained.

    `x = alpha(t) * x0 + sigma(t) * noise` in the model's own scaling, with `t` the model's own time (n,):
    exact at both ends, where a single noise-to-signal ratio would be infinite.
    """

    prediction: str  # "epsilon", "v_prediction" or "flow": what the network itself was trained to output
    defaults: Sampling  # steps, guidance and size that the model is sampled with where nobody says
    guide: Callable[[], Guide] | None  # set while a sampling-time patch is applied

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Full-length states, as the denoiser was trained to read them."""
        ...

    def tokens(self, prompts: Sequence[str]) -> Cond:
        """States up to the longest prompt's end token only: what closed forms need, at a fraction of the cost."""
        ...

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), each (n, 1, 1, 1)."""
        ...

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) training times drawn as the model family draws them."""
        ...

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x0 predicted from x at time t; differentiable; one forward."""
        ...

    def latents(self, images: Tensor) -> Tensor:
        """(n, c, h, w) latents (posterior mean, scaled) of images (n, 3, H, W) in [0, 1]."""
        ...

    def pixels(self, x: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] of clean latents."""
        ...

    def attending(self, rule: Callable[[str, Tensor], Tensor], role: str) -> AbstractContextManager[None]:
        """Inside, every attention layer of a role goes on with the maps that the rule returns; differentiable.

        Args:
            rule: (layer's name, maps (n, heads, pixels, tokens)) -> maps of the same shape.

        Raises:
            Unsupported: the model has no such layers, or they attend to text and image jointly.
        """
        ...

    def skipping(self, rule: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Inside, the decoder reads of each skip (n, c, h, w) what the rule makes of it; in models that have skips."""
        ...

    def speaking(self, words: Mapping[str, Word]) -> AbstractContextManager[None]:
        """Inside, these words may stand in any prompt, several and several times; differentiable in their vectors.

        A word is matched as a word, in capitals or not, a longer one first; it is none inside another one. Words of
        blocks around this one stay. No tensor of the model changes.

        Raises:
            BadRequest, Damaged, WrongBase: a word does not fit the model, or is spoken with another meaning already.
        """
        ...

    def prefixed(self, vectors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, every prompt but the empty one is read with these vectors before its first word; differentiable in
        them.

        Args:
            vectors: (k, d) by the name of the token table that they stand in for.
        """
        ...

    def looking(self, look: Callable[[Cond], None]) -> AbstractContextManager[None]:
        """Inside, `look` is shown the Cond of every forward of the denoiser before it runs."""
        ...

    def null(self, n: int, negative: str = "") -> Cond:
        """n rows of the unconditional partner: the negative prompt as classifier-free guidance uses it."""
        ...

    def guided(self, guidance: float) -> bool:
        """Whether sampling at this scale runs an unconditional branch, which doubles its forwards."""
        ...

    def walk(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: Sampling = Sampling(),  # frozen, so one instance serves every call
        *,
        start: Start | None = None,
        guide: Callable[[], Guide] | None = None,
    ) -> Walk:
        """The steps of a sampling run as it goes, in one batch; after the last one the walk's `x` is clean.

        Without `guide`, the hooks of an applied patch, else classifier-free guidance, decide.
        """
        ...

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: Sampling = Sampling(),
        *,
        start: Start | None = None,
        batch: int | None = None,
        guide: Callable[[], Guide] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Images (n, 3, H, W) in [0, 1], one for each prompt and its seed, through the pipeline's own scheduler.

        A row depends on its own prompt, seed and start only, not on how many are drawn at once (`batch`; the host's
        choice where not given). `guide` makes a fresh Guide for each batch; without one an applied patch's hooks, else
        classifier-free guidance, decide.
        """
        ...

    def injecting(self, injection: Injection) -> AbstractContextManager[None]:
        """Inside, cross-attention also reads the injection's tokens.

        Raises:
            Unsupported: the family has no cross-attention of its own, or the host takes no adapters.
        """
        ...


@runtime_checkable
class Encoder(Host, Protocol):
    """A model that turns images into vectors."""

    def embed(self, images: Tensor) -> Tensor:
        """(n, d) of images (n, 3, H, W) in [0, 1]; unit norm where the model says so."""
        ...


@runtime_checkable
class Classifier(Encoder, Protocol):
    """A model that turns images into class scores."""

    labels: tuple[str, ...]

    def logits(self, images: Tensor) -> Tensor:
        """(n, len(labels)) of images (n, 3, H, W) in [0, 1]."""
        ...

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) as `embed` gives them, and logits, in one forward."""
        ...


@runtime_checkable
class Matcher(Encoder, Protocol):
    """A model that puts images and texts into one space (CLIP)."""

    scale: float  # what cosines are multiplied with before a softmax over texts

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(n, d) of texts, comparable with `embed` by cosine."""
        ...


@runtime_checkable
class Autoencoder(Host, Protocol):
    """A model that turns images into latents and back."""

    def latents(self, images: Tensor) -> Tensor:
        """(n, c, h, w) of images (n, 3, H, W) in [0, 1]."""
        ...

    def pixels(self, x: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] of latents."""
        ...


@runtime_checkable
class Generator(Host, Protocol):
    """A latent-variable image generator."""

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d) codes drawn as the model was trained to read them."""
        ...

    def synthesize(self, w: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] of codes; differentiable."""
        ...


@runtime_checkable
class Inverter(Generator, Protocol):
    """A generator that also finds the codes of images."""

    def invert(self, images: Tensor) -> Tensor:
        """(n, d) codes of images (n, 3, H, W) in [0, 1]."""
        ...


CAPABILITIES: dict[str, type] = {
    "Host": Host,
    "Denoiser": Denoiser,
    "Encoder": Encoder,
    "Classifier": Classifier,
    "Matcher": Matcher,
    "Autoencoder": Autoencoder,
    "Generator": Generator,
    "Inverter": Inverter,
}


def capabilities(host: object) -> tuple[str, ...]:
    """What a host can do, as error messages name it."""
    able = [name for name, kind in CAPABILITIES.items() if isinstance(host, kind)]
    return tuple(name for name in able if name != "Host" or len(able) == 1)
