"""Figures of a run, as PNG files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

# Metrics that are read together; the others have a panel of their own.
PANELS = {
    "knn_top1": "probe",
    "probe_top1": "probe",
    "val/top1": "accuracy",
    "val/top5": "accuracy",
    "train/loss": "loss",
    "train/baseline": "loss",
}
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
            shown = picture.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            axis.imshow(shown[..., :3] if shown.shape[-1] >= 3 else np.repeat(shown[..., :1], 3, axis=-1), interpolation="nearest")
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9, color=INK)
    figure.subplots_adjust(left=0.9 / (columns * side + 0.9), right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    _save(figure, path)


def curves(rows: list[dict[str, str]], path: Path, *, steps_per_epoch: int) -> list[str]:
    """One panel a metric over epochs, from the rows of `metrics.csv`; the learning rate is left out. Returns the metrics drawn."""
    names = [n for n in (rows[0] if rows else {}) if n not in ("step", "seconds", "epoch") and not n.startswith("lr")]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(PANELS.get(name, name), []).append(name)
    panels = [g for g in groups.items() if any(r.get(n) for r in rows for n in g[1])]
    if not panels:
        return []
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3), squeeze=False)
    for axis, (title, members) in zip(axes[0], panels, strict=True):
        for name, colour in zip(members, ACCENTS, strict=False):
            points = [(int(r["step"]) / steps_per_epoch, float(r[name])) for r in rows if r.get(name)]
            x, y = zip(*points, strict=True)
            percent = title in ("probe", "accuracy")
            y = tuple(100 * v for v in y) if percent else y
            axis.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=3, linewidth=1.4, label=name)
        axis.set_title(f"{title}, %" if title in ("probe", "accuracy") else title, fontsize=10, color=INK)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(members) > 1:
            axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    _save(figure, path)
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
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
