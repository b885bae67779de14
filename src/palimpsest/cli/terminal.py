"""The terminal: what is printed, which signals end the work, what an encoding cannot show."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from palimpsest.core.printable import printable


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as containers and batch queues do."""


def tell(text: str) -> None:
    """Prints text in which names, prompts and paths of others stand; what could steer a terminal is escaped."""
    print(printable(text, keep="\n\t"))


def complain(text: str) -> None:
    """The same, as an error."""
    print(f"palimpsest: {printable(text, keep=chr(10))}", file=sys.stderr)


@contextmanager
def prepared() -> Iterator[None]:
    """Until the block ends, what the streams cannot encode is replaced, and SIGTERM ends work as SIGINT does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> None:
    raise Terminated
