"""Every error that a user can cause. Each message says what was wrong, what was expected and what to do."""

from __future__ import annotations


class PalimpsestError(Exception):
    """Root of all errors raised on purpose; the command line prints its text and exits with `code`."""

    code = 2


class BadRequest(PalimpsestError):
    """The request cannot be carried out as it stands (empty target, target that is also kept, zero steps)."""


class Unsupported(PalimpsestError):
    """A method, host or file kind that cannot be combined with what it was given."""


class WrongBase(PalimpsestError):
    """A patch or receipt was made for another model than the one it is used on."""


class Damaged(PalimpsestError):
    """A file is truncated, altered, or of an unsafe kind."""


class TooLarge(PalimpsestError):
    """Work that does not fit the memory at hand; said before it begins."""


class Diverged(PalimpsestError):
    """Training left the finite numbers."""


class Touched(PalimpsestError):
    """A method left the host changed or hooked: a bug in the method, never the user's fault."""

    code = 70
