"""The command line. Every command is a dataclass, its fields are its options; torch and models load when needed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How models are loaded."""

    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the model; float32 is what readings are comparable in."""


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How much is looked at."""

    prompts: int = 20
    """Different prompts for each target."""
    seeds: int = 3
    """Seeds for each prompt."""
    sample_steps: int | None = None
    """Sampling steps; the model's own default where not given."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own default where not given."""
    judge: tuple[str, ...] = ()
    """Evaluators: folders of classifiers or CLIP models, or "nudenet". Drawn worlds bring their own."""


@dataclass(frozen=True, kw_only=True)
class Erase(Loading, Looking):
    """Make a text-to-image model unable to draw a concept. Writes patch.safetensors, receipt.json and receipt.html."""

    target: Positional[str]
    """The concept, or several with commas between."""
    model: str = "tiny/sd"
    """A diffusers folder, a single .safetensors checkpoint, or one of the shipped tiny models."""
    method: str = ""
    """The system, e.g. rece, esd, sld, uce; the default is named when used. Its own options follow as --name value."""
    keep: str = ""
    """What must stay, with commas between; the model's own neighbours of the target where not given."""
    toward: str = ""
    """What the target becomes; nothing (the empty prompt) where not given."""
    kind: Literal["identity", "object", "class", "attribute", "style", "domain"] = "object"
    """What sort of thing the target is; drawn worlds know it themselves."""
    out: Path = Path("erased")
    """Folder for the results."""
    oracle: str = ""
    """A model that never saw the target, to compare with."""
    seed: int = 0
    """Of everything random in the method."""
    resume: bool = False
    """Go on from the checkpoint in the out folder."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.progress import bars

        entry = catalog.find(self.method or run.DEFAULT_ERASER, "erase")
        method = _method(entry, rest)
        if not self.method:
            print(f"No --method given: using {entry.card.name} ({entry.id}), the default.")
        host = run.load(self.model, device=self.device, dtype=self.dtype)
        request = run.request(host, self.target, keep=self.keep, toward=self.toward, kind=self.kind)
        if not self.keep:
            print(f"Keeping the model's own neighbours: {', '.join(c.name for c in request.keep)}.")
        with bars() as progress:
            done = run.erase(
                host, request, method=method, out=self.out, seed=self.seed, resume=self.resume, look=_look(self),
                oracle=run.load(self.oracle, device=self.device, dtype=self.dtype) if self.oracle else None,
                command=command, progress=progress,
            )  # fmt: skip
        _say(done.receipt)
        print(f"patch    {done.patch_path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Audit(Loading, Looking):
    """Measure what changed between two models, whoever edited them. Writes receipt.json and receipt.html."""

    before: str
    """The untouched model."""
    after: str
    """The edited model, or a patch for the untouched one."""
    concept: str
    """What the edit was about, or several with commas between."""
    keep: str = ""
    """What should have stayed; the model's own neighbours where not given."""
    kind: Literal["identity", "object", "class", "attribute", "style", "domain"] = "object"
    """What sort of thing the concept is."""
    oracle: str = ""
    """A model that never saw the concept, to compare with."""
    out: Path = Path("audit")
    """Folder for the results."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.progress import bars

        host = run.load(self.before, device=self.device, dtype=self.dtype)
        request = run.request(host, self.concept, keep=self.keep, kind=self.kind)
        with bars() as progress:
            receipt = run.audit(
                host, self.after, request, out=self.out, look=_look(self), command=command, progress=progress,
                oracle=run.load(self.oracle, device=self.device, dtype=self.dtype) if self.oracle else None,
            )  # fmt: skip
        _say(receipt)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sample(Loading):
    """Draw pictures from a model, with or without a patch."""

    model: Positional[str]
    """The model."""
    prompt: Positional[str]
    """What to draw."""
    patch: Path | None = None
    """A patch to apply while drawing."""
    scale: float = 1.0
    """Strength of the patch."""
    force: bool = False
    """Apply a patch that was made for another model."""
    negative: str = ""
    """What to keep away from."""
    seed: int = 0
    """Of the first picture; the next ones count up."""
    n: int = 1
    """How many pictures, side by side."""
    steps: int | None = None
    """Sampling steps."""
    guidance: float | None = None
    """Scale of classifier-free guidance."""
    out: Path = Path("sample.png")
    """A PNG file."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest import run

        host = run.load(self.model, device=self.device, dtype=self.dtype)
        run.sample(
            host, self.prompt, patch=self.patch, scale=self.scale, force=self.force, negative=self.negative,
            seed=self.seed, n=self.n, steps=self.steps, guidance=self.guidance, out=self.out,
        )  # fmt: skip
        print(self.out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a receipt: hashes, numbers and, if asked, the pictures drawn again. Exit code 1 where something differs."""

    receipt: Positional[Path]
    """A receipt.json."""
    remeasure: Literal["none", "sample", "all"] = "none"
    """How many pictures to draw and judge again."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.verify import verify

        findings = verify(self.receipt, remeasure=self.remeasure)
        for finding in findings:
            print(finding)
        return int(any(not f.ok for f in findings))


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Run systems on the fixed work of their family and write exam/results; only what changed runs again."""

    what: Positional[str] = "erase"
    """A family (erase) or one system (erase/uce)."""
    results: Path = Path("exam/results")
    """Folder of the results."""
    again: bool = False
    """Ignore cached results."""
    docs: Path | None = Path("docs/systems.md")
    """The table generated from the results."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.exam import table, work
        from palimpsest.progress import bars

        with bars() as progress:
            work.run(self.what, self.results, again=self.again, progress=progress)
        if self.docs is not None:
            table.write(self.results, self.docs)
            print(self.docs)
        return 0


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the systems."""

    verb: Positional[str] = ""
    """Only this verb's."""
    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        if self.verb and self.verb not in catalog.VERBS:
            raise BadRequest(f"There is no verb {self.verb!r}; the verbs are {', '.join(catalog.VERBS)}.")
        found = [e for e in catalog.entries().values() if e.id.startswith(self.verb)]
        if self.json:
            print(json.dumps([{"id": e.id, **asdict(e.card)} for e in found], indent=1))
            return 0
        for e in found:
            print(f"{e.id:24} {e.card.year}  {e.card.name:18} {e.card.family:14} {e.card.title}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Everything about one system: paper, claim, parameters, docs."""

    system: Positional[str]
    """Its id, e.g. erase/esd."""
    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        e = catalog.find(self.system)
        if self.json:
            print(json.dumps({**asdict(e), **asdict(e.card)}, indent=1))
            return 0
        print(
            f"{e.card.name} ({e.id})\n{e.card.title}, {e.card.year}\n{e.card.paper}\nclaim: {e.card.claim}\n\n{e.doc}\n"
        )
        for p in e.parameters:
            print(f"  --{p.name.replace('_', '-'):22} {p.type:26} default {p.default}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Versions, devices, and what is installed."""

    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.run import doctor

        found = doctor()
        print(json.dumps(found, indent=1) if self.json else "\n".join(f"{k:16} {v}" for k, v in found.items()))
        return 0


COMMANDS: dict[str, type] = {
    "erase": Erase,
    "audit": Audit,
    "sample": Sample,
    "verify": Verify,
    "exam": Exam,
    "ls": Ls,
    "show": Show,
    "doctor": Doctor,
}
_TAKES_METHOD = {"erase"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 is success, 1 a negative answer, 2 a user's error, 130 an interruption."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except PalimpsestError as e:
        print(f"palimpsest: {e}", file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print("palimpsest: interrupted; run the same command with --resume to go on.", file=sys.stderr)
        return 130


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        from palimpsest import __version__

        print(__version__)
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        raise BadRequest(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    parsed, unknown = tyro.cli(
        COMMANDS[name],
        prog=f"palimpsest {name}",
        description=COMMANDS[name].__doc__,
        args=rest,
        return_unknown_args=True,
    )
    if unknown and name not in _TAKES_METHOD:
        raise BadRequest(f"{name} has no option {unknown[0]!r}; see `palimpsest {name} --help`.")
    return parsed.run(unknown, shlex.join(["palimpsest", *args]))


def _method(entry: catalog.Entry, rest: list[str]) -> Any:
    return tyro.cli(catalog.load(entry.id), prog=f"palimpsest ... --method {entry.id}", args=rest)


def _look(options: Looking) -> Any:
    from palimpsest.run import Look

    return Look(
        prompts=options.prompts,
        seeds=options.seeds,
        steps=options.sample_steps,
        guidance=options.guidance,
        judges=options.judge,
    )


def _say(receipt: Any) -> None:
    print(receipt.summary())
    print(f"receipt  {receipt.html}\n         {receipt.json}")


def _overview() -> str:
    lines = [f"  {name:8} {(c.__doc__ or '').strip().splitlines()[0]}" for name, c in COMMANDS.items()]
    return "\n".join(
        ["palimpsest COMMAND ...: erase and audit concepts in image models, with a receipt.", "", *lines, "",
         "palimpsest COMMAND --help tells a command's options; palimpsest show erase/esd a system's."]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
