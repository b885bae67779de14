"""The verbs as a user calls them, from a notebook or from the command line."""

from __future__ import annotations

from palimpsest.hosts.load import load
from palimpsest.run.auditing import audit, edited, refuse_other, unlike
from palimpsest.run.cases import Case, case
from palimpsest.run.do import RECORD_FILE, Done, do, erase, perform, system_of, unlearn
from palimpsest.run.drawing import doctor, sample
from palimpsest.run.editing import edit
from palimpsest.run.inserting import insert
from palimpsest.run.looking import Look, plan
from palimpsest.run.merging import merge
from palimpsest.run.publishing import Published, publish
from palimpsest.run.requests import concepts, request, told

__all__ = [
    "RECORD_FILE",
    "Case",
    "Done",
    "Look",
    "Published",
    "audit",
    "case",
    "concepts",
    "do",
    "doctor",
    "edit",
    "edited",
    "erase",
    "insert",
    "load",
    "merge",
    "perform",
    "plan",
    "publish",
    "refuse_other",
    "request",
    "sample",
    "system_of",
    "told",
    "unlearn",
    "unlike",
]
