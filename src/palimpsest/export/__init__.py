"""Patches as files that other programs read, LoRAs and embeddings; and embeddings of other programs as patches."""

from palimpsest.export.embedding import Embedded, export_words
from palimpsest.export.lora import Exported, export_patch
from palimpsest.export.pipeline import Whole, export_pipeline
from palimpsest.export.read import read_patch

__all__ = ["Embedded", "Exported", "Whole", "export_patch", "export_pipeline", "export_words", "read_patch"]
