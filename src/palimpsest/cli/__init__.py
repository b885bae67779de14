"""The command line. Every command is a dataclass, its fields are its options; torch and models load when needed."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import tyro

from palimpsest import machine
from palimpsest.cli import edit
from palimpsest.cli.audit import Audit
from palimpsest.cli.browse import Doctor, Ls, Show, own_options
from palimpsest.cli.compare import Compare
from palimpsest.cli.diff import Diff
from palimpsest.cli.exam import Exam
from palimpsest.cli.export import Export
from palimpsest.cli.imported import Import
from palimpsest.cli.ledger import LedgerCommand
from palimpsest.cli.sample import Sample
from palimpsest.cli.sign import Keygen, Sign
from palimpsest.cli.terminal import Terminated, complain, prepared
from palimpsest.cli.verb import Doing, command_of
from palimpsest.cli.verify import Verify
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, PalimpsestError

COMMANDS: dict[str, type] = {
    "audit": Audit,
    "sample": Sample,
    "compare": Compare,
    "verify": Verify,
    "sign": Sign,
    "keygen": Keygen,
    "export": Export,
    "import": Import,
    "diff": Diff,
    "ledger": LedgerCommand,
    "exam": Exam,
    "ls": Ls,
    "show": Show,
    "doctor": Doctor,
}


@cache
def commands() -> dict[str, type]:
    """Every command by name: one for each installed verb, then those about models, patches and receipts."""
    made = {
        name: (edit.command_of if verb.makes == "ImageEdit" else command_of)(name, verb)
        for name, verb in catalog.verbs().items()
    }
    return {**made, **COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 is success, 1 a negative answer, 2 a user's error, 130 or 143 an interruption."""
    if argv is None:  # the process is this command's alone
        machine.prepare()
    args = list(sys.argv[1:] if argv is None else argv)
    with prepared():
        try:
            return _run(args)
        except PalimpsestError as e:
            if os.environ.get("RANK", "0") == "0" or machine.launched() == 1:  # once is enough
                complain(str(e))
            return e.code
        except Terminated:
            complain(f"told to end; {_how_to_go_on(args)}.")
            return 143
        except KeyboardInterrupt:
            complain(f"interrupted; {_how_to_go_on(args)}.")
            return 130


def _how_to_go_on(args: list[str]) -> str:
    """A command keeps what it can take up again; the exam keeps every finished run without being told."""
    fields = getattr(commands().get(args[0] if args else ""), "__dataclass_fields__", {})
    return "run the same command" + (" with --resume to go on" if "resume" in fields else " again")


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        from palimpsest import __version__

        print(__version__)
        return 0
    name, rest = args[0], args[1:]
    if name not in commands():
        raise BadRequest(f"There is no command {name!r}; the commands are {', '.join(commands())}.")
    command: Any = commands()[name]
    if machine.launched() > 1 and Doing not in command.__mro__:
        raise BadRequest(
            f"{name} trains nothing that {machine.launched()} processes could divide: run it without `accelerate "
            "launch`."
        )
    parsed, unknown = tyro.cli(
        command,
        prog=f"palimpsest {name}",
        description=inspect.cleandoc(command.__doc__) + _of_system(name, rest),
        args=rest,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if unknown and name not in catalog.verbs():  # a verb's system takes them
        raise BadRequest(f"{name} has no option {unknown[0]!r}; see `palimpsest {name} --help`.")
    return parsed.run(unknown, shlex.join(["palimpsest", *args]))


def _of_system(verb: str, args: list[str]) -> str:
    """The part of a verb's help on the system that was named: `palimpsest erase --method esd --help`."""
    named = [value for option, value in pairwise(args) if option == "--method"]
    if not named or verb not in catalog.verbs():
        return ""
    system = catalog.find(named[-1], verb)
    return f"\n\nOptions of {system.card.name} ({system.id}):\n{own_options(system)}"


def _overview() -> str:
    lines = [f"  {name:8} {(c.__doc__ or '').strip().splitlines()[0]}" for name, c in commands().items()]
    return "\n".join(
        ["palimpsest COMMAND ...: erase and audit concepts in image models, with a receipt.", "", *lines, "",
         "palimpsest COMMAND --help tells a command's options; palimpsest show erase/esd a system's."]
    )  # fmt: skip
