"""Detached Ed25519 signatures of receipts (RFC 8032, through the cryptography package): who stands behind a receipt.

The signature covers the bytes of receipt.json. Those hold the hashes of the patch, of the pictures, of the models and
of the judges, so that one signature stands for all of them.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.files import write_beside, write_text

SUFFIX = ".sig"
_HEAD = "palimpsest receipt signature 1"


def keygen(folder: Path) -> tuple[Path, Path]:
    """Writes key.pem (PKCS 8, readable by its owner only) and public.pem into a folder.

    Raises:
        BadRequest: a key is there already; it is never overwritten.
    """
    ed25519, serialization = _library()
    private, public = folder / "key.pem", folder / "public.pem"
    for path in (private, public):
        if path.exists():
            raise BadRequest(f"{path} exists; a key is never overwritten. Choose another folder or remove it yourself.")
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    def write(tmp: Path) -> None:
        with open(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(secret)

    write_beside(private, write)
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, write_text(public, shown.decode())


def sign(receipt: Path, key: Path) -> Path:
    """Writes `receipt.json.sig` beside a receipt.

    Raises:
        BadRequest: no receipt there, or the key is no Ed25519 private key in PEM.
    """
    ed25519, serialization = _library()
    try:
        secret = serialization.load_pem_private_key(_bytes(key, "key"), password=None)
    except (ValueError, TypeError) as e:
        raise BadRequest(
            f"{key} is no private key in PEM without a password ({e}); make one with palimpsest keygen."
        ) from e
    if not isinstance(secret, ed25519.Ed25519PrivateKey):
        raise BadRequest(f"{key} is no Ed25519 key; make one with palimpsest keygen.")
    signature = base64.b64encode(secret.sign(_message(receipt))).decode()
    return write_text(receipt.with_name(receipt.name + SUFFIX), f"{_HEAD}\n{signature}\n")


def signed_by(receipt: Path, public: Path) -> bool:
    """Whether the signature beside a receipt was made with the key that belongs to a public one.

    Raises:
        BadRequest: no public Ed25519 key in PEM, or no signature there.
        Damaged: the signature file is no signature.
    """
    ed25519, serialization = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(_bytes(public, "public key"))
    except ValueError as e:
        raise BadRequest(f"{public} is no public key in PEM ({e}).") from e
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadRequest(f"{public} is no Ed25519 public key.")
    path = receipt.with_name(receipt.name + SUFFIX)
    lines = _bytes(path, "signature").decode("utf-8", "replace").splitlines()
    try:
        if len(lines) != 2 or lines[0] != _HEAD:
            raise ValueError("another first line")
        signature = base64.b64decode(lines[1], validate=True)
    except ValueError as e:
        raise Damaged(f"{path} is no signature of a receipt ({e}).") from e
    try:
        key.verify(signature, _message(receipt))
    except InvalidSignature:
        return False
    return True


def _message(receipt: Path) -> bytes:
    return _HEAD.encode() + b"\n" + _bytes(receipt, "receipt")


def _bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadRequest(f"There is no {what} at {path} ({e.strerror}).") from e


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as e:
        raise Unsupported("Signatures need the cryptography package: pip install 'palimpsest-concepts[sign]'.") from e
    return ed25519, serialization
