"""Watches an embedding while pretraining, without labels: its rank and spread, and signs of collapse told in words.

N pictures, D width.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.errors import UserError
from visiontune.evaluate import embed_all, rank_me, spread
from visiontune.module import is_sharded

# Pixels of the longer side of the pictures that are kept for the figures.
THUMBNAIL = 96


@dataclass(frozen=True)
class Sign:
    """A sign of collapse.

    Attributes:
        metric: what is looked at.
        seen: its value now and at the start (NaN if there was none) -> whether it is there.
        means: what that is, and what to do; the end of a sentence.
        in_a_row: checks that must see it, where the first steps of a healthy run may look the same.
    """

    metric: str
    seen: Callable[[float, float], bool]
    means: str
    in_a_row: int = 1


APART = "start again with a lower optim.lr or a longer optim.warmup_epochs, and with what keeps the pictures apart turned up"
# Measured on CIFAR-10 pictures. Random weights have spread 0.16 (vgg11) to 0.98 (convnext_atto) and rank 4.7 (a narrow ViT) to 220, so
# no fixed level serves for these two. Healthy runs brought the rank of convnext_atto from 150 down to 24 and let others rise. Two views
# pulled together with nothing to keep them apart: rank 150 to 5, spread of projections from 0.8 to 0.004, in 150 steps; the embedding's own
# spread stayed high meanwhile, and in a resnet10t its rank even rose: the projector collapses first.
SIGNS = (
    Sign("embedding/spread", lambda now, start: now < start / 20, f"all pictures look nearly alike to the backbone; {APART}"),
    Sign(
        "embedding/rank",
        lambda now, start: now < 10 and now < start / 10,
        f"the embedding keeps to very few directions; {APART}",
    ),
    Sign(
        "train/spread",
        lambda now, start: now < 0.03,
        f"what the loss compares is nearly the same for all pictures; {APART} (a teacher's momentum, a temperature, a variance term)",
    ),
    # Teachers sharpen only while they learn: at the start their entropy may be as high.
    Sign(
        "train/teacher_entropy",
        lambda now, start: now > 0.98,
        "the teacher spreads every picture over all prototypes alike and so says nothing; start again with a lower teacher temperature, "
        "a lower optim.lr or a higher teacher momentum",
        in_a_row=2,
    ),
    Sign(
        "train/teacher_marginal",
        lambda now, start: now < 0.05,
        "the teacher gives nearly all pictures to one prototype; start again with a higher teacher temperature, centring that follows "
        "faster, or a lower optim.lr",
        in_a_row=2,
    ),
)


class EmbeddingWatch(L.Callback):
    """Looks before the first step, about ten times over the run, and at the end; leaves weights and random state bit-identical.

    Logs `embedding/rank` and `embedding/spread` of clean training pictures, and warns of each sign of collapse once. At the end it draws.

    Args:
        batches: makes batches of the same clean pictures each time, as `embed_all` takes them.
        folder: where figures go.
        epochs: of the run.
        say: where to tell.
        draw: `(embeddings (N, D), pictures [(C, h, w) in [0, 1]], folder)` -> figures.

    Attributes:
        start: `embedding/rank` and `embedding/spread` before the first step.
        latest: the newest.
        said: metric -> the warning that was given.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Any]],
        folder: Path,
        *,
        epochs: int,
        say: Callable[[str], None],
        draw: Callable[[Tensor, list[Tensor], Path], None],
    ) -> None:
        self.batches, self.folder, self.epochs, self.say, self.draw = batches, folder, epochs, say, draw
        self.every = max(1, epochs // 10)
        self.start: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.said: dict[str, str] = {}
        self._in_a_row: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "latest": self.latest, "said": self.said, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.latest, self.said = state_dict["start"], state_dict["latest"], state_dict["said"]
        self._in_a_row = state_dict["in_a_row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self.start = self.latest = self._measure(trainer, self._embed(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every and done != self.epochs:
            return
        pictures: list[Tensor] | None = [] if done == self.epochs else None
        z = self._embed(trainer, pl_module, pictures)
        if not trainer.is_global_zero:
            return
        self.latest = self._measure(trainer, z)
        self.warn(self.latest | {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}, f"after epoch {done}")
        if pictures and self.latest:
            self.draw(z, pictures, self.folder)

    def _embed(self, trainer: L.Trainer, module: L.LightningModule, pictures: list[Tensor] | None = None) -> Tensor:
        """`(N, D)`; no rows in other processes than the first, and where no picture can be read. Adds small copies to `pictures`."""
        nothing = torch.empty(0, 0)
        if not (trainer.is_global_zero or is_sharded(trainer)):
            return nothing
        compiled = torch.compiler.set_stance("force_eager")  # batches of this size would be other programs, for a few of them
        with torch.random.fork_rng(devices=[]), trainer.precision_plugin.forward_context(), compiled:
            try:
                return embed_all(module, _kept(self.batches(), pictures))[0]
            except UserError:  # none can be read: the training says so, with paths and causes
                return nothing

    def _measure(self, trainer: L.Trainer, z: Tensor) -> dict[str, float]:
        """Rank and spread, logged; none without pictures, or of numbers that are not finite, which the loss will tell."""
        if not len(z) or not z.isfinite().all():
            return {}
        scores = {"embedding/rank": float(rank_me(z)), "embedding/spread": float(spread(z))}
        for logger in trainer.loggers:
            logger.log_metrics(dict(scores, epoch=trainer.current_epoch), step=trainer.global_step)
        return scores

    def warn(self, metrics: dict[str, float], when: str) -> None:
        """Say each sign of collapse that these metrics show, once in a run."""
        for sign in SIGNS:
            now, start = metrics.get(sign.metric), self.start.get(sign.metric, float("nan"))
            seen = now is not None and sign.seen(now, start)
            self._in_a_row[sign.metric] = self._in_a_row.get(sign.metric, 0) + 1 if seen else 0
            if self._in_a_row[sign.metric] < sign.in_a_row or sign.metric in self.said:
                continue
            since = f", {start:.3g} at the start" if start == start else ""
            self.said[sign.metric] = f"collapse: {sign.metric} is {now:.3g} {when}{since}: {sign.means}"
            self.say(f"warning: {self.said[sign.metric]}")


def _kept(batches: Iterable[Any], pictures: list[Tensor] | None) -> Iterator[Any]:
    """The batches as they are; small copies of their pictures are added to the list, if there is one."""
    for batch in batches:
        if pictures is not None and batch["images"]:
            x = batch["images"][0].float() / 255
            scale = min(1.0, THUMBNAIL / max(x.shape[-2:]))
            pictures += F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1) if scale < 1 else x
        yield batch
