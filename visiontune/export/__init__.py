"""Weights to use elsewhere."""

from visiontune.export.timm_folder import Labels, image_statistics, save_timm_folder, timm_config

__all__ = ["Labels", "image_statistics", "save_timm_folder", "timm_config"]
