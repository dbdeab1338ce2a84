"""What answers are worth, counted while they come: of classifiers and of detectors, for training, evaluation and comparison alike."""

from visiontune.metrics.classification import LOWER_IS_BETTER, Labels, classification_metrics, higher_is_better, log_odds
from visiontune.metrics.detection import MeanAveragePrecision, coco_metrics

__all__ = [
    "LOWER_IS_BETTER", "Labels", "MeanAveragePrecision", "classification_metrics", "coco_metrics", "higher_is_better", "log_odds",
]  # fmt: skip
