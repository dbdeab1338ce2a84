"""What the numbers of `result.json` are called, and how they are told."""

from typing import Any

from visiontune.callbacks.progress import clock

NAMES = {
    "top1": "top-1 accuracy", "top5": "top-5 accuracy", "balanced_accuracy": "balanced accuracy",
    "macro_ap": "mean average precision of classes (macro AP)", "macro_f1": "macro F1", "micro_f1": "micro F1",
    "macro_f1_thresholds": "macro F1 at the thresholds", "micro_f1_thresholds": "micro F1 at the thresholds",
    "map": "mean average precision (COCO's, IoU 0.5 to 0.95)", "map50": "mean average precision at IoU 0.5",
    "map75": "mean average precision at IoU 0.75", "map_small": "mean average precision of small boxes",
    "map_medium": "mean average precision of medium boxes", "map_large": "mean average precision of large boxes",
    "mar": "mean average recall", "mar10": "mean average recall, ten boxes a picture and class",
    "f1": "F1 of boxes at the threshold, mean of classes", "precision": "precision of boxes at the threshold, mean of classes",
    "recall": "recall of boxes at the threshold, mean of classes", "threshold": "threshold of the score",
    "exact": "pictures with all labels right", "auroc": "AUROC, each class against the rest",
    "ece": "expected calibration error", "ece_scaled": "expected calibration error after temperature",
    "knn_top1": "k-NN top-1", "probe_top1": "linear probe top-1", "temperature": "temperature",
    "loss": "last training loss", "loss_baseline": "the loss of one that predicts the mean", "val_loss": "validation loss",
    "cross_entropy": "cross entropy",
}  # fmt: skip
# The same number at another time.
TIMES = {"_last": "last epoch", "_start": "before training"}
# What a run is summed up by, each at every time; the rest stands in its table.
HEADLINES = ("map", "map50", "top1", "balanced_accuracy", "macro_ap", "micro_f1_thresholds", "knn_top1", "probe_top1")
NOT_PERCENT = ("loss", "loss_baseline", "val_loss", "cross_entropy", "temperature", "threshold")


def named(result: dict[str, Any]) -> list[tuple[str, str, float | None]]:
    """Key, name and value of every score and loss there is, in the order of `NAMES`; None where it is of nothing."""
    times = {"": "", **{end: f" ({when})" for end, when in TIMES.items()}}
    found = [(key + end, name + when) for key, name in NAMES.items() for end, when in times.items()]
    return [(key, name, result[key]) for key, name in found if key in result]


def headlines(result: dict[str, Any], *, digits: int = 1) -> list[str]:
    """The few numbers to sum a run up by, with their names."""
    shown = ((name, value) for key, name, value in named(result) if _plain(key) in HEADLINES)
    return [f"{name} n/a" if value is None else f"{name} {100 * value:.{digits}f} %" for name, value in shown]


def _plain(key: str) -> str:
    """Without its time."""
    return next((key.removesuffix(end) for end in TIMES if key.endswith(end)), key)


def best_score(result: dict[str, Any]) -> tuple[str, float] | None:
    """The one number to judge a stage by."""
    for name in ("map", "top1", "macro_ap", "probe_top1", "knn_top1"):
        if result.get(name) is not None:
            return name, result[name]
    return None


def standard_error(share: float, n: int) -> float:
    """Of a share counted on n pictures (binomial)."""
    return (share * (1 - share) / n) ** 0.5


def score_rows(result: dict[str, Any]) -> list[list[str]]:
    """Name and value of every score and loss there is."""
    rows, n = [], result.get("val_pictures", result.get("pictures"))
    for key, name, value in named(result):
        if value is None:
            rows.append([name, "n/a"])
            continue
        error = f" ± {100 * standard_error(value, n):.2f}" if key == "top1" and n else ""
        rows.append([name, f"{value:.4f}" if _plain(key) in NOT_PERCENT else f"{100 * value:.2f}{error} %"])
    return rows


def result_rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of a run: its scores, then what it cost."""
    rows = score_rows(result)
    if "embedding_rank" in result:
        ends = [f"{result[k]:.1f}" for k in ("embedding_rank_start", "embedding_rank") if k in result]
        rows.append(["directions that the embedding uses (RankMe), start and end", " → ".join(ends)])
    rows.append(["time", clock(result["seconds"])])
    rows.append(["pictures seen", f"{result['images_seen']:,}"])
    rows.append(["pictures a second, all included", f"{result['images_per_second']:.0f}"])
    rows.append(["peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB"])
    return rows
