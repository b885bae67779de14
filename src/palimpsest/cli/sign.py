"""palimpsest keygen and sign"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Keygen:
    """Make an Ed25519 key pair for signing receipts: key.pem, which stays with you, and public.pem, which goes out."""

    out: Positional[Path] = Path(".")
    """Folder for both."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.sign import keygen

        private, public = keygen(self.out)
        print(f"private  {private} (keep it to yourself)\npublic   {public}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Sign a receipt, so that whoever has your public key can tell that it is yours and unaltered."""

    receipt: Positional[Path]
    """A receipt.json; the signature is written beside it."""
    key: Path
    """Your key.pem."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.receipt.sign import sign

        print(sign(self.receipt, self.key))
        return 0
