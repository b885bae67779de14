"""palimpsest keygen and sign"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from palimpsest.cli import options
from palimpsest.cli.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Keygen:
    """Make an Ed25519 key pair for signing receipts: key.pem, which stays with you, and public.pem, which goes out.

    Examples:
      palimpsest keygen keys
    """

    out: Positional[options.Folder] = Path(".")
    """Folder for both."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.sign import keygen

        private, public = keygen(self.out)
        tell(f"private  {private} (keep it to yourself)\npublic   {public}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Sign a receipt, so that whoever has your public key can tell that it is yours and unaltered.

    Examples:
      palimpsest sign no-star/receipt.json --key keys/key.pem
    """

    receipt: Positional[options.ReceiptFile]
    """A receipt.json; the signature is written beside it."""
    key: options.File
    """Your key.pem."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.sign import sign

        tell(str(sign(self.receipt, self.key)))
        return 0
