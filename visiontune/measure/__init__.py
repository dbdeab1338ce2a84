"""What was trained, judged: classifiers on labelled pictures, detectors on annotated ones."""

from visiontune.measure.boxes import evaluate_boxes, judge_boxes, write_boxes
from visiontune.measure.labels import BATCH, evaluate, judge, mirrored, write

__all__ = [
    "BATCH", "evaluate", "evaluate_boxes", "judge", "judge_boxes", "mirrored", "write", "write_boxes",
]  # fmt: skip
