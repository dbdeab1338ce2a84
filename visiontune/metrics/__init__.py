"""What answers are worth, counted while they come: of classifiers and of detectors, for training, evaluation and comparison alike."""

from visiontune.metrics.classification import (
    LOWER_IS_BETTER,
    Agreed,
    Labels,
    Mean,
    classification_metrics,
    higher_is_better,
    log_odds,
    lost,
)
from visiontune.metrics.detection import MeanAveragePrecision, coco_metrics

__all__ = [
    "LOWER_IS_BETTER", "Agreed", "Labels", "Mean", "MeanAveragePrecision", "classification_metrics", "coco_metrics", "higher_is_better",
    "log_odds", "lost",
]  # fmt: skip
