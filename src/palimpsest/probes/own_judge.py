"""The untouched model as its own judge: a picture shows what the model denoises it best under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from palimpsest.core.concept import Concept, Kind
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import hook_count
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.reading import Evaluator
from palimpsest.ops.prompts import TEMPLATES, batches, filled, holds
from palimpsest.probes.evaluators import FORWARDS, OWN, kind_of

NAME = "the untouched model itself, as a zero-shot classifier"
TRIALS = 64  # of one candidate against none, at most
PICTURES = 16  # that race side by side
ROWS = 32  # of a forward
WORDINGS = 4  # of a concept, in turn
MARGIN = 0.01  # by which a candidate's error may exceed that of none and still go before it
POOLED = 4  # side to which latents are pooled as features


@dataclass(frozen=True, kw_only=True)
class Race:
    """How long candidates are compared, and when one is out.

    A trial is one time and one noise, the same for every candidate and picture. Trials take the times in turn, each
    with a noise of its own and the next wording of every concept.

    Args:
        forwards: of the denoiser for each picture, at most; `least` trials of everybody are made all the same.
        shares: quantiles of the model's training times at which it denoises.
        least: trials before anybody may drop out, at least 2: every time once, since colours and styles show at other
            times than things.
        error: the chance, at each look at a kind of a picture, that somebody drops out whose error is the leader's.
        seed: of every noise.
    """

    forwards: int = FORWARDS
    shares: tuple[float, ...] = (0.75, 0.85, 0.65, 0.92, 0.55)
    least: int = 5
    error: float = 0.05
    seed: int = 0


class OwnJudge:
    """An untouched denoiser D as a zero-shot classifier: a picture shows the concept under which D removes noise best.

    The error of a candidate c on a picture's latents x0 is |D(alpha x0 + sigma noise, t, c) - x0|^2 over that of "none
    of these", the kind's templates without a name ("a photo of"), mean over trials. Relative errors need no weights
    over times and are the same for networks that predict noise, velocity or flow. Candidates compete with those of
    their own kind and with none, whose error counts 1 % more: a network that sees a little of a picture knows without a
    name what it shows, so that even the right name gains nothing at times with little noise (of 120 pictures of tiny/sd
    a fifth of the colours and styles lay above none, hardly any by more than 2 %). A candidate without a rival has no
    such favour. The one with the least error is there, unless it is none. p is the chance, over the noises, that its
    error is below that of its nearest rival: Phi(z), with z the difference in standard errors, so that the leader alone
    has more than 0.5. It says nothing of how often the model takes one thing for another.

    A candidate drops out of the race (successive elimination) as soon as its error surely exceeds the leader's: when
    the lower limit of their paired difference is above 0, by Student's t over the trials so far, with the variance
    pooled over the kind and `error` shared by the candidates. A kind is decided when one is left. What a picture reads
    as depends on that picture alone.

    Args:
        host: the untouched model. It must be untouched whenever a picture is read: the edited model never judges.
        concepts: what may be seen. A label "subject:star" says the kind, else the concept's own kind does.

    Cost: at most `race.forwards` forwards a picture, or those of `race.least` trials of everybody.

    Fails when: the model does not know a concept, or knows two of a kind that a picture shows at once; what it cannot
    draw it cannot judge.

    Source: Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier, 2023; Clark and Jaini, Text-to-Image
    Diffusion Models are Zero-Shot Classifiers, 2023.
    """

    def __init__(self, host: Denoiser, concepts: Sequence[Concept], race: Race | None = None) -> None:
        self.host, self.race = host, race or Race()
        self.source = f"{OWN}:{self.race.forwards}"
        self.concepts = tuple({c.name.casefold(): c for c in reversed(concepts)}.values())[::-1]
        if not self.concepts:
            raise BadRequest("A model that judges itself needs at least one concept to look for.")
        kinds = [_kind(c) for c in self.concepts]
        # Columns of the race by kind: its candidates, and behind all candidates its none.
        self.kinds = [
            torch.tensor([*(i for i, k in enumerate(kinds) if k == kind), len(kinds) + g])
            for g, kind in enumerate(dict.fromkeys(kinds))
        ]
        self._said = [_said(c) for c in self.concepts]
        self._said += [_nobody(self.concepts[int(columns[0])].kind) for columns in self.kinds]
        self._base, self._hooks = host.fingerprint(), hook_count(host.root)
        self._times = self._schedule()
        self._conds: dict[int, Cond] = {}
        self.evaluator = Evaluator(
            name=NAME,
            version=f"2, at most {self.race.forwards} forwards a picture",
            sha256=self._sha256(),
            threshold=0.501,  # 0.5 is a tie
            classes=tuple(f"{k}:{c.name}" for k, c in zip(kinds, self.concepts, strict=True)),
            licence="see the model's own card",
            judges_itself=True,
        )
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def most(self) -> int:
        """Forwards for a picture, at most."""
        return max(self.race.forwards, self.race.least * len(self._said))

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """(n, classes) chances, of which at most one of each kind is above 0.5: none where "none of these" leads.

        Raises:
            BadRequest: the model is not what it was when it became the judge.
        """
        self._refuse_edited()
        return torch.cat([self.outcome(x0)[0] for x0 in self._latents(images).split(PICTURES)])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(n, 16 c): the latents, pooled to 4 x 4: layout and colours."""
        return functional.adaptive_avg_pool2d(self._latents(images), POOLED).flatten(1).cpu()

    @torch.no_grad()
    def outcome(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(n, classes) chances of latents x0 (n, c, h, w), and (n,) int64 forwards that each took."""
        race, shape = self.race, (len(x0), len(self._said))
        left, spent = torch.ones(shape, dtype=torch.bool), torch.zeros(len(x0), dtype=torch.long)
        behind = torch.zeros(shape, dtype=torch.float64)  # the leader of the kind, in standard errors
        going, found = torch.ones(len(x0), dtype=torch.bool), []  # by trial, (n, columns) relative errors
        for trial in range(TRIALS):
            run = torch.zeros(shape, dtype=torch.bool)
            for columns in self.kinds:  # a kind runs until one is left, and its none with it
                undecided = left[:, columns].sum(1) > 1
                run[:, columns] = left[:, columns] & undecided[:, None]
                run[:, columns[-1]] = undecided
            cost = run.sum(1)
            going &= (cost > 0) & ((trial < race.least) | (spent + cost <= race.forwards))
            run &= going[:, None]
            if not bool(going.any()):
                break
            spent += cost * going
            errors = self._errors(x0, run, trial)
            for columns in self.kinds:
                errors[:, columns] /= errors[:, columns[-1:]]
                errors[:, columns[-1]] *= 1 + MARGIN if len(columns) > 2 else 1.0
            found.append(errors)
            if trial + 1 < race.least:
                continue
            past = torch.stack(found, 2)
            for columns in self.kinds:
                rows = run[:, columns[-1]].nonzero().flatten()
                if len(rows):
                    at = rows[:, None], columns
                    z, freedom = _behind(past[at], left[at])
                    behind[at] = z.where(left[at], behind[at])
                    # One rival each, so that all of them together stay below the level.
                    level = race.error / (left[at].sum(1, keepdim=True) - 1)
                    left[at] &= z <= torch.from_numpy(stats.t.ppf(1 - level.numpy(), freedom.numpy()))
        chances = torch.special.ndtr(-behind)
        for columns in self.kinds:
            ahead = behind[:, columns].topk(2, 1, largest=False)  # the leader and its nearest rival
            leader = columns[ahead.indices[:, :1]]
            chances.scatter_(1, leader, torch.special.ndtr(ahead.values[:, 1:]))
        return chances[:, : len(self.concepts)].float(), spent

    def _errors(self, x0: Tensor, run: Tensor, trial: int) -> Tensor:
        """(n, columns) float64 squared errors of a trial; nan where not run."""
        t, noise = self._times[trial % len(self._times)], self._noise(x0, trial)
        alpha, sigma = self.host.noise(t[None])
        cond, found = self._cond(trial), torch.full(run.shape, torch.nan, dtype=torch.float64)
        for pairs in run.nonzero().split(ROWS):
            picture, said = pairs.unbind(1)
            clean = x0[picture]
            predicted = self.host.denoise(alpha * clean + sigma * noise, t.expand(len(pairs)), cond[said])
            found[picture, said] = (predicted - clean).double().square().mean((1, 2, 3)).cpu()
        if not bool(found[run].isfinite().all()):
            raise BadRequest(
                f"{self.host.name} predicts NaN instead of pictures in this precision, so it cannot judge: load it in "
                "float32, or name another judge."
            )
        return found

    def _noise(self, x0: Tensor, trial: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.race.seed + trial)
        return torch.randn(x0[:1].shape, generator=generator).to(x0)

    def _cond(self, trial: int) -> Cond:
        """The trial's wording of every column."""
        wording = trial % WORDINGS
        if wording not in self._conds:
            self._conds[wording] = self.host.encode([said[wording % len(said)] for said in self._said])
        return self._conds[wording]

    def _schedule(self) -> Tensor:
        """(times,) the model's own times at the race's shares."""
        times = self.host.times(4096, torch.Generator().manual_seed(0)).sort().values
        return times[[min(len(times) - 1, int(share * len(times))) for share in self.race.shares]]

    def _latents(self, images: Tensor) -> Tensor:
        """Encoded once for `read` and `features` of the same pictures."""
        if self._last is None or self._last[0] is not images:
            parts = [self.host.latents(images[list(part)]) for part in batches(range(len(images)), PICTURES)]
            self._last = images, torch.cat(parts).float()
        return self._last[1]

    def _refuse_edited(self) -> None:
        host = self.host
        if host.guide is None and hook_count(host.root) <= self._hooks and host.fingerprint() == self._base:
            return
        raise BadRequest(
            f"{host.name} is to judge pictures as it was, untouched, but a patch or a rule is applied to it now. Read "
            "the pictures after the block in which the patch is applied."
        )

    def _sha256(self) -> str:
        """Of the model's fingerprint and of all that decides what it reads beside."""
        alpha, sigma = (part.flatten().tolist() for part in self.host.noise(self._times))
        schedule = [self.host.prediction, self._times.tolist(), alpha, sigma]
        settings = [self._base, asdict(self.race), TRIALS, MARGIN, schedule, self._said]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _behind(past: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) standard errors behind the leader, and (n, 1) degrees of freedom of these.

    Args:
        past: (n, m, trials) errors, of whoever is left in every trial. left: (n, m) bool, at least 2 a row.
    """
    n = past.shape[2]
    leader = past.mean(2).masked_fill(~left, torch.inf).argmin(1, keepdim=True)
    apart = past - past.gather(1, leader[..., None].expand(-1, -1, n))
    rivals = left.scatter(1, leader, False)
    count = rivals.sum(1, keepdim=True)
    variance = apart.var(2).masked_fill(~rivals, 0.0).sum(1, keepdim=True) / count
    z = apart.mean(2) / (variance / n).sqrt().clamp(min=1e-12)
    return z.masked_fill(~left, torch.inf), (n - 1) * count


def _said(concept: Concept) -> tuple[str, ...]:
    """The name, alone and in its kind's templates, which all candidates share: they are to differ by the name alone.

    Its own prompts only where none of them says the name: then that is no word for the model.
    """
    strange = concept.prompts and not any(holds(prompt, concept.name) for prompt in concept.prompts)
    return (concept.prompts if strange else (concept.name, *filled(concept)))[:WORDINGS]


def _nobody(kind: Kind) -> tuple[str, ...]:
    """What stands for none of a kind: the same without a name."""
    return ("", *(template.format("").strip() for template in TEMPLATES[kind]))[:WORDINGS]


def _kind(concept: Concept) -> str:
    """What a concept competes as: the key of a label "subject:star", else its own kind."""
    keys = [kind_of(label) for label in concept.labels if isinstance(label, str)]
    return next(filter(None, keys), concept.kind)
