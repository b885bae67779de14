"""Readings and evidence as a document that can be read, handed on and checked."""

from palimpsest.receipt.make import Receipt, audit

__all__ = ["Receipt", "audit"]
