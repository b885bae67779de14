"""The verbs as a user calls them, from a notebook or from the command line."""

from __future__ import annotations

from palimpsest.hosts.load import load
from palimpsest.run.auditing import audit, edited
from palimpsest.run.drawing import doctor, sample
from palimpsest.run.erasing import DEFAULT_ERASER, Erased, erase
from palimpsest.run.looking import Look, forecast, plan
from palimpsest.run.requests import concepts, request
from palimpsest.run.unlearning import DEFAULT_UNLEARNER, RECORD_FILE, Unlearned, unlearn

__all__ = [
    "DEFAULT_ERASER",
    "DEFAULT_UNLEARNER",
    "RECORD_FILE",
    "Erased",
    "Look",
    "Unlearned",
    "audit",
    "concepts",
    "doctor",
    "edited",
    "erase",
    "forecast",
    "load",
    "plan",
    "request",
    "sample",
    "unlearn",
]
