"""Use what was trained: a run, an exported folder, a safetensors or ONNX file, or timm's own weights."""

from visiontune.predict.box_predictor import BoxPredictor
from visiontune.predict.boxes import BoxPrediction, check_boxes_format, write_box_csv, write_coco_results
from visiontune.predict.detector import DetectorModel
from visiontune.predict.loading import devices, load, load_or_create, weights_of
from visiontune.predict.model import Model
from visiontune.predict.onnx_model import OnnxDetector, OnnxModel
from visiontune.predict.predictor import Embedding, Prediction, Predictor
from visiontune.predict.sources import Sources, from_words
from visiontune.predict.tiles import predict_tiles
from visiontune.predict.write import check_format, whole_file, write_csv, write_embeddings

__all__ = [
    "BoxPrediction",
    "BoxPredictor",
    "DetectorModel",
    "Embedding",
    "Model",
    "OnnxDetector",
    "OnnxModel",
    "Prediction",
    "Predictor",
    "Sources",
    "check_boxes_format",
    "check_format",
    "devices",
    "from_words",
    "load",
    "load_or_create",
    "predict_tiles",
    "weights_of",
    "whole_file",
    "write_box_csv",
    "write_coco_results",
    "write_csv",
    "write_embeddings",
]  # fmt: skip
