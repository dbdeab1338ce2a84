"""Weights to use elsewhere: a folder that plain timm loads, one safetensors file, ONNX."""

from visiontune.export.detector_folder import save_detector_folder
from visiontune.export.onnx_detector import export_detector_onnx
from visiontune.export.onnx_graph import OnnxFile, export_onnx
from visiontune.export.timm_folder import Labels, image_statistics, save_timm_folder, timm_config
from visiontune.export.weights_file import export_weights_file

__all__ = [
    "Labels",
    "OnnxFile",
    "export_detector_onnx",
    "export_onnx",
    "export_weights_file",
    "image_statistics",
    "save_detector_folder",
    "save_timm_folder",
    "timm_config",
]
