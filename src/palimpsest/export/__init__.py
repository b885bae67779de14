"""Patches as files that other programs read: LoRAs for diffusers, ComfyUI and the kohya family of tools."""

from palimpsest.export.lora import Exported, export_patch

__all__ = ["Exported", "export_patch"]
