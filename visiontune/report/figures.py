"""Figures of a run, as PNG files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from torch import Tensor

from visiontune.callbacks.metrics import steps_done

# matplotlib's own font has no Chinese, Japanese or Korean: class names in them are drawn where the system has one of these.
EAST_ASIAN = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic")
matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(f for f in EAST_ASIAN if f in font_manager.get_font_names())]

# Metrics that are read together, in the order of their panels; the others follow with a panel of their own.
PANELS = {
    "train/loss": "loss",
    "train/baseline": "loss",
    "val/loss": "loss",
    "train/loss_classes": "parts of the loss",
    "train/loss_boxes": "parts of the loss",
    "train/loss_centers": "parts of the loss",
    "train/loss_proposals": "parts of the loss",
    "train/loss_proposal_boxes": "parts of the loss",
    "val/map": "mean average precision",
    "val/map50": "mean average precision",
    "val/map75": "mean average precision",
    "val/top1": "accuracy",
    "val/top5": "accuracy",
    "val/balanced_accuracy": "accuracy",
    "val/exact": "accuracy",
    "val/macro_f1": "F1",
    "val/micro_f1": "F1",
    "val/auroc": "ranking",
    "val/macro_ap": "ranking",
    "val/ece": "calibration error",
    "knn_top1": "probe",
    "probe_top1": "probe",
    "embedding/rank": "embedding/rank",
    "embedding/spread": "spread",
    "train/spread": "spread",
    "train/teacher_entropy": "teacher",
    "train/teacher_marginal": "teacher",
}
# Panels of numbers between 0 and 1: their whole range is shown, so that small changes look small.
SHARES = ("spread", "teacher")
PERCENT = ("probe", "mean average precision", "accuracy", "F1", "ranking", "calibration error")
INK, ACCENTS = "#333333", ("#1b6ca8", "#d1603d", "#3d8b5f", "#8a5ba6")


def picture_rows(rows: dict[str, Tensor], path: Path) -> None:
    """Named rows of pictures, one column a picture: `{"original": (B, 3, H, W) in [0, 1], ...}`."""
    columns = max(len(r) for r in rows.values())
    side = 1.15
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * side + 0.9, len(rows) * side), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(as_image(picture), interpolation="nearest")
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9, color=INK)
    figure.subplots_adjust(left=0.9 / (columns * side + 0.9), right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    save(figure, path)


def as_image(picture: Tensor) -> np.ndarray:
    """`(C, H, W)` in [0, 1] with any number of channels -> `(H, W, 3)`: the first three, or the first as grey."""
    shown = picture.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return shown[..., :3] if shown.shape[-1] >= 3 else np.repeat(shown[..., :1], 3, axis=-1)


def curves(rows: list[dict[str, str]], path: Path, *, steps_per_epoch: int) -> list[str]:
    """One panel a group of metrics over epochs, from the rows of `metrics.csv`, without the learning rate. Returns the metrics drawn."""
    names = [n for n in (rows[0] if rows else {}) if n not in ("step", "seconds", "epoch") and not n.startswith("lr")]
    names = [n for n in PANELS if n in names] + [n for n in names if n not in PANELS]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(PANELS.get(name, name), []).append(name)
    panels = [g for g in groups.items() if any(r.get(n) for r in rows for n in g[1])]
    if not panels:
        return []
    lines = -(-len(panels) // 4)  # at most four panels in a line
    columns = -(-len(panels) // lines)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, members) in zip(axes.flat, panels, strict=False):
        for name, colour in zip(members, ACCENTS, strict=False):
            points = [(steps_done(r) / steps_per_epoch, float(r[name])) for r in rows if r.get(name)]
            x, y = zip(*points, strict=True)
            percent = title in PERCENT
            y = tuple(100 * v for v in y) if percent else y
            axis.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=3, linewidth=1.4, label=name)
        axis.set_title(f"{title}, %" if title in PERCENT else title, fontsize=10, color=INK)
        if title in SHARES:
            axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(members) > 1 or title in SHARES:
            axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save(figure, path)
    return names


def bars(values: dict[str, float], path: Path, *, label: str, error: float = 0.0) -> None:
    """Named percentages as bars, with one error for all."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.3 * len(values), 3))
    names = list(values)
    drawn = axis.bar(names, [values[n] for n in names], yerr=error or None, capsize=4, color=ACCENTS[0], width=0.6, ecolor=INK)
    axis.bar_label(drawn, [f"{values[n]:.1f}" for n in names], padding=3, fontsize=9)
    axis.set_ylim(0, 100 if max(values.values()) > 70 else max(values.values()) * 1.3)
    axis.set_ylabel(label, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    figure.tight_layout()
    save(figure, path)


def neighbours(images: list[np.ndarray], queries: np.ndarray, nearest: np.ndarray, cosines: np.ndarray, path: Path) -> None:
    """A line a query: its picture, a gap, and its nearest others, the cosine above each.

    Args:
        images: each `(h, w, 3)` in [0, 1].
        queries: numbers of pictures, `(Q,)`.
        nearest: of each its nearest, `(Q, k)`.
        cosines: likewise.
        path: the PNG.
    """
    Q, k = nearest.shape
    figure, axes = plt.subplots(
        Q, k + 2, figsize=(1.15 * (k + 1) + 0.5, 1.35 * Q), squeeze=False, gridspec_kw={"width_ratios": [1, 0.35] + [1] * k}
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, query, near, cosine in zip(axes, queries, nearest, cosines, strict=True):
        line[0].imshow(images[query], interpolation="nearest")
        for axis, index, c in zip(line[2:], near, cosine, strict=True):
            axis.imshow(images[index], interpolation="nearest")
            axis.set_title(f"{c:.2f}", fontsize=8, color=INK, pad=2)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.2 / (1.35 * Q), bottom=0.01, wspace=0.05, hspace=0.2)
    save(figure, path)


def picture_map(images: list[np.ndarray], places: np.ndarray, path: Path, *, title: str) -> None:
    """Small pictures at their places on a plane. Of those that would cover each other, one is drawn: the nearest to its cell's centre.

    Args:
        images: each `(h, w, 3)` in [0, 1].
        places: `(N, 2)`; the outermost hundredth on each side is drawn at the border.
        path: the PNG.
        title: how the plane was made.
    """
    cells = int(np.clip(1.2 * len(images) ** 0.5, 6, 24))
    low, high = np.percentile(places, (1, 99), axis=0)
    at = (places - low) / np.maximum(high - low, 1e-12) * cells  # in cells
    cell = np.clip(at, 0, cells - 1e-6).astype(int)
    nearest_first = np.argsort(((at - cell - 0.5) ** 2).sum(axis=1), kind="stable")
    drawn: dict[tuple[int, int], int] = {}
    for index in nearest_first.tolist():
        drawn.setdefault((int(cell[index, 0]), int(cell[index, 1])), index)
    figure, axis = plt.subplots(figsize=(8, 8))
    for (x, y), index in drawn.items():
        h, w = (side / max(images[index].shape[:2]) * 0.48 for side in images[index].shape[:2])
        axis.imshow(images[index], extent=(x + 0.5 - w, x + 0.5 + w, y + 0.5 - h, y + 0.5 + h), interpolation="nearest")
    axis.set(xlim=(0, cells), ylim=(0, cells), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_color("#dddddd")
    axis.set_title(f"{title}; {len(drawn)} of {len(images)} pictures drawn, one a cell", fontsize=10, color=INK)
    figure.tight_layout()
    save(figure, path)


def save(figure: Any, path: Path, *, tight: bool = False) -> None:
    """As PNG; `tight` cuts it to what was drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None}, bbox_inches="tight" if tight else None, pad_inches=0.08)
    plt.close(figure)
