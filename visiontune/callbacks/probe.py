"""k-NN and linear probe on labelled pictures while pretraining.

The probe sees clean, unmasked pictures through the module's own `represent`, and leaves the backbone bit-identical.
"""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L

from visiontune.errors import counted
from visiontune.evaluate import embed_all, knn_predict, linear_probe


class Probe(L.Callback):
    """Before the first step (the backbone as it starts), every few epochs, and at the end.

    Args:
        train: makes batches of labelled training pictures.
        val: likewise of validation pictures.
        every: epochs between probes.
        epochs: of the run.
        seed: of the linear probe's split.
        say: where to tell.
        on_broken: told of pictures that could not be read.

    Attributes:
        start: scores before the first step.
        latest: the newest scores, `knn_top1` and `probe_top1`, in [0, 1].
    """

    def __init__(
        self,
        train: Callable[[], Iterable[Any]],
        val: Callable[[], Iterable[Any]],
        *,
        every: int,
        epochs: int,
        seed: int,
        say: Callable[[str], None],
        on_broken: Callable[[list[tuple[str, str]]], None] | None = None,
    ) -> None:
        self.on_broken = on_broken
        self.train, self.val, self.every, self.epochs, self.seed, self.say = train, val, every, epochs, seed, say
        self.start: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.latest = state_dict["start"], state_dict["latest"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self.start = self._score(trainer, pl_module, "at the start")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every == 0 or done == self.epochs:
            self.latest = self._score(trainer, pl_module, f"after epoch {done}")

    def _score(self, trainer: L.Trainer, module: L.LightningModule, when: str) -> dict[str, float]:
        # Every process scores the whole set: it is small, and nothing has to be gathered.
        with trainer.precision_plugin.forward_context():
            x, y = embed_all(module, self.train(), self.on_broken)
            z, truth = embed_all(module, self.val(), self.on_broken)
        if not (x.isfinite().all() and z.isfinite().all()):
            self.say(f"warning: probe {when}: the embeddings are not finite, so there is no score")
            return {}
        knn = float((knn_predict(x, y, z) == truth).float().mean())
        linear = linear_probe(x, y, z, truth, seed=self.seed)
        self.say(f"probe {when}: k-NN {100 * knn:.1f} %, linear {100 * linear.top1:.1f} % of {counted(len(truth), 'picture')}")
        scores = {"knn_top1": knn, "probe_top1": linear.top1}
        for logger in trainer.loggers:
            logger.log_metrics(dict(scores, epoch=trainer.current_epoch), step=trainer.global_step)
        return scores
