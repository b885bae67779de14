"""Who draws and reads an audit's pictures: this process, and others that load the same models."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest import machine
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.hosts.load import held, load
from palimpsest.hosts.source import Origin
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.groups import Shot
from palimpsest.probes.plan import Plan, batches
from palimpsest.processes import Workers, cores

PROCESS = 700 * 2**20  # bytes of a process that has loaded the libraries, and no model yet
WORTH = 1e10  # parameters x steps x pictures: about ten seconds of a core, in which another process is just ready
_number = 0  # of this process among those of its crew


@dataclass(frozen=True, kw_only=True)
class Loadable:
    """A model that another process can load by itself, and by what it knows that it is the same.

    Args:
        sha256: fingerprint of its tensors. settings: what else decides pictures, as JSON.
    """

    origin: Origin
    sha256: str
    settings: str

    @staticmethod
    def of(host: Any) -> Loadable | None:
        """None for a model that nobody else can load, or that draws otherwise just now than it would there."""
        origin = getattr(host, "origin", None)
        if origin is None or getattr(host, "guide", None) is not None or torch.is_autocast_enabled("cpu"):
            return None
        return Loadable(origin=origin, sha256=host.fingerprint(), settings=_settings(host))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A host that draws, as it is or with a patch."""

    host: Any
    patch: Patch | None = None

    @contextmanager
    def ready(self) -> Iterator[Any]:
        """The host, with the patch until the block ends."""
        with self.patch.applied(self.host) if self.patch is not None else nullcontext():
            yield self.host


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Pictures of one set that are drawn as one batch, whoever draws them.

    Args:
        who: the model in words.
        model: how to load it; None where only this process has it. patch: the file of what is applied to it.
    """

    which: str
    who: str
    shots: tuple[Shot, ...]
    how: Sampling
    model: Loadable | None = None
    patch: str = ""

    def __str__(self) -> str:
        return f"{len(self.shots)} pictures of the {self.who} (seeds from {self.shots[0].seed})"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures (n, 3, H, W) uint8, as an array, and what drawing them cost where the account is another process's."""

    pictures: Any
    forwards: Mapping[str, int] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None


class Crew:
    """The processes that draw and read for one audit; by default this one alone.

    Args:
        count: of processes, this one among them; 0: as many as a cluster of Ray has room for.
        ray: as `processes.spread` takes it.
        threads: that each computes with; as many as now where not given.
        models: what the others load as soon as they start. gpu: whether each needs one.
        words: how many work and why, for the user.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        ray: str = "",
        threads: int | None = None,
        models: Sequence[Loadable] = (),
        gpu: bool = False,
        words: str = "",
    ) -> None:
        self.count, self.words = count, words
        self.workers = Workers(
            max(0, count - 1),
            ray="" if count == 1 else ray,
            threads=threads or torch.get_num_threads(),
            gpu=gpu,
            prepare=partial(prepare, tuple(models)),
        )
        self._files: dict[int, tuple[Patch, str]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def alone(self) -> bool:
        return self.count == 1

    def start(self) -> None:
        """Starts the others without waiting for them."""
        self.workers.start()

    def close(self) -> None:
        """Ends the others and removes what was written for them."""
        self.workers.close()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def file_of(self, patch: Patch, near: Path | None) -> str:
        """Where the others find a patch: in a folder that they see as well, or in a passing one."""
        if id(patch) not in self._files:
            if near is None and self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="palimpsest-")
            folder = near or Path(self._folder.name if self._folder is not None else "")
            path = patch.save(folder / f"patch-{len(self._files)}.safetensors")
            self._files[id(patch)] = patch, str(path.resolve())
        return self._files[id(patch)][1]


def crew_for(hosts: Sequence[Any], *, workers: int | None = None, ray: str = "", work: float = float("inf")) -> Crew:
    """As many processes as help to draw with some models, or as many as are asked for.

    Args:
        hosts: the models that each process holds; the first one draws most.
        workers: processes in all; 0: one a core, or one a CUDA device; None: the same, but one alone for work that
            would be done before another has started.
        ray: as `processes.spread` takes it.
        work: parameters x steps x pictures.

    Raises:
        BadRequest: a number below 0.
    """
    if workers is not None and workers < 0:
        raise BadRequest(f"workers is {workers}; it must be at least 0, which means as many as there are cores.")
    models = [model for model in map(Loadable.of, hosts) if model is not None]
    if Loadable.of(hosts[0]) is None:
        return Crew(words="Drawn by this process, since no other can load the model by itself.")
    device = torch.device(models[0].origin.device)
    gpu = device.type == "cuda"
    places, what = (cores(), "core") if device.type == "cpu" else (1, "CUDA device" if gpu else "device")
    if gpu and device.index is None:
        places = max(1, torch.cuda.device_count())
    # Weights that are read as they lie in their files stay pages of these, which processes share.
    each = PROCESS + sum(held(m.origin.model, dtype=m.origin.dtype).private for m in models)
    free = None if gpu else machine.available("cpu")
    fit = places if free is None else max(1, min(places, 1 + free // each))
    threads = min(torch.get_num_threads(), max(1, cores() // fit))
    how = partial(Crew, ray=ray, threads=threads, models=models, gpu=gpu)
    size = f"{machine.amount(each)} each, {machine.amount(free or 0)} are free"
    if ray and ray != "local" and not workers:
        return how(0, words=f"Drawn by this process and all that fit into the cluster at {ray}.")
    if workers:
        short = f"; they may not fit into memory ({size})" if free is not None and workers > 1 + free // each else ""
        return how(workers, words=f"Drawn by {_processes(workers)}{short}.")
    if workers is None and work < WORTH:
        return how(1, words="")
    if fit < places:
        return how(fit, words=f"Drawn by {_processes(fit)}, not one a {what}, as memory allows ({size}).")
    return how(fit, words=f"Drawn by {_processes(fit)}, one a {what}." if fit > 1 else "")


def draw(
    wanted: Mapping[str, tuple[str, Model, Sequence[Shot]]],
    plan: Plan,
    *,
    crew: Crew,
    gallery: Gallery,
    trace: Trace,
    batch: int | None,
) -> None:
    """Draws what a gallery lacks, batch by batch; each batch is kept as soon as it is there.

    Batches hold the same pictures whoever draws them, since their size changes the last bits of a picture.

    Args:
        wanted: by set, who draws in words, the model, and the shots.
    """
    pieces: list[Piece] = []
    for which, (who, model, shots) in wanted.items():
        missing = gallery.missing(which, shots)
        if missing:
            loadable = None if crew.alone else Loadable.of(model.host)
            patch = "" if loadable is None or model.patch is None else crew.file_of(model.patch, gallery.folder)
            pieces += [
                Piece(which=which, who=who, shots=tuple(now), how=plan.how(now[0]), model=loadable, patch=patch)
                for now in batches(missing, batch or at_once(model.host, plan))
            ]
    if not crew.alone:
        pieces.sort(key=lambda piece: -len(piece.shots))  # small ones last, so that all end together
    total, done = Counter[str](), Counter[str]()
    for piece in pieces:
        total[piece.which] += len(piece.shots)
    again: list[Piece] = []

    def here(piece: Piece, between: Callable[[], None]) -> Batch:
        def progress(step: int, steps: int) -> None:
            now = done[piece.which] + len(piece.shots) * step // steps
            trace.tell(f"drawing: {piece.who}", now, total[piece.which])
            between()

        with wanted[piece.which][1].ready() as host:
            return Batch(pictures=_pictures(host, piece, trace, progress).numpy())

    def keep(piece: Piece, drawn: Batch | None) -> None:
        if drawn is None:
            again.append(piece)
            return
        gallery.add(piece.which, piece.shots, torch.from_numpy(drawn.pictures))
        add_account(trace, drawn)
        done[piece.which] += len(piece.shots)
        trace.tell(f"drawing: {piece.who}", done[piece.which], total[piece.which])

    crew.workers.share(_elsewhere, pieces, keep, here, alone=lambda piece: piece.model is None)
    for piece in list(again):
        keep(piece, here(piece, lambda: None))


def at_once(host: Any, plan: Plan) -> int:
    """How many pictures of a plan a model draws together: as many as it says, 16 where it says nothing."""
    return getattr(host, "at_once", lambda size: 16)(plan.size)


def prepare(models: Sequence[Loadable], number: int) -> None:
    """Loads models in a process of the crew, on the device of its number.

    Raises:
        Unsupported: what lies there now is another model.
    """
    global _number
    _number = number
    for model in models:
        if loaded(model) is None:
            raise Unsupported(f"what it loaded from {model.origin.model} is not the model of this audit")


def _elsewhere(piece: Piece) -> Batch | None:
    """A piece drawn in a process of the crew; None where it cannot load the same model."""
    assert piece.model is not None
    host, trace = loaded(piece.model), Trace()
    if host is None:
        return None
    with Model(host=host, patch=_patch(piece.patch) if piece.patch else None).ready():
        pictures = _pictures(host, piece, trace)
    return Batch(pictures=pictures.numpy(), forwards=trace.forwards, calls=trace.calls, peak_bytes=trace.peak_bytes)


def _pictures(host: Any, piece: Piece, trace: Trace, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """(n, 3, H, W) uint8 of a piece.

    Raises:
        BadRequest: the model draws NaN.
    """
    with trace.watching(host) if hasattr(host, "parts") else nullcontext():
        images = host.sample(
            [shot.prompt for shot in piece.shots],
            [shot.seed for shot in piece.shots],
            piece.how,
            batch=len(piece.shots),
            progress=progress,
        )
    if not bool(torch.isfinite(images).all()):
        raise BadRequest(
            f"The {piece.who} draws NaN instead of pictures (first asked: {piece.shots[0].prompt!r}): its weights or "
            "its scheduler's settings are broken. Nothing can be measured on it."
        )
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def add_account(trace: Trace, drawn: Any) -> None:
    """Adds what another process's work cost: its `forwards`, `calls` and `peak_bytes`."""
    for account, more in ((trace.forwards, drawn.forwards), (trace.calls, drawn.calls)):
        for part, n in more.items():
            account[part] = account.get(part, 0) + n
    if drawn.peak_bytes is not None:
        trace.peak_bytes = max(drawn.peak_bytes, trace.peak_bytes or 0)


@lru_cache(maxsize=4)
def loaded(model: Loadable) -> Any:
    """The host that a process of the crew has for a model; None where what lies there now is another."""
    origin = model.origin
    if origin.device == "cuda":
        origin = replace(origin, device=f"cuda:{_number % max(1, torch.cuda.device_count())}")
    host = load(**asdict(origin))
    return host if (host.fingerprint(), _settings(host)) == (model.sha256, model.settings) else None


@lru_cache(maxsize=2)
def _patch(path: str) -> Patch:
    return Patch.load(path)


def _settings(host: Any) -> str:
    return json.dumps(host.settings(), sort_keys=True) if hasattr(host, "settings") else ""


def _processes(n: int) -> str:
    return "1 process" if n == 1 else f"{n} processes"
