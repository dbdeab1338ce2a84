"""SwAV. Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (arXiv 2006.09882).

B pictures, V views, E width of the projection, K prototypes.
"""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.backbones import any_size
from visiontune.heads.projector import projector
from visiontune.heads.prototypes import Prototypes
from visiontune.heads.queue import Queue
from visiontune.losses import cross_entropy_between_views, sinkhorn, spread
from visiontune.losses.gather import world_size
from visiontune.module import Module
from visiontune.pretrain._parts import global_and_local, unset
from visiontune.ranges import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, SeveralInt
from visiontune.teacher import entropies

# Appendix A.2: SimCLR's colours; two crops of 224 and, in the authors' code, six of 96 pixels.
VIEWS = {
    "views": 2, "crop_scale": (0.14, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
    "hue": 0.2, "grey": 0.2, "blur": 0.5, "local": {"views": 6, "image_size": 96, "crop_scale": (0.05, 0.14)},
}  # fmt: skip
# Appendix A.1: LARS, learning rate 4.8 for the batch of 4096, which is 0.3 for 256, weight decay 1e-6.
OPTIM = {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "momentum": 0.9}
# Every prototype must be some pictures' in a batch: few pictures have small batches.
BY_PICTURES = {"prototypes": ((20_000, 300), (200_000, 1000), (None, 3000))}


class SwAV(Module):
    """Sort the batch into prototypes, all used alike, and tell from one view where another was sorted. For any timm backbone.

    Args:
        temperature: of the prediction.
        sinkhorn_temperature: of the sorting, the paper's epsilon.
        sinkhorn_iterations: of the sorting.
        prototypes: how many; None: 3000, in a recipe by the number of pictures.
        projector_hidden: width of the projector's hidden layer.
        projector_out: width of the projection.
        queue: projections of earlier batches that are sorted along, where a batch is small beside the prototypes; 0: none.
        queue_start: share of the run before the queue is used, which must have filled by then: it begins with random rows.
        freeze_prototypes: share of the run in which prototypes stay as they are.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        temperature: PositiveFloat = 0.1,
        sinkhorn_temperature: PositiveFloat = 0.05,
        sinkhorn_iterations: PositiveInt = 3,
        prototypes: SeveralInt | None = None,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 128,
        queue: NonNegativeInt = 0,
        queue_start: Fraction = 0.1,
        freeze_prototypes: Fraction = 0.01,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = any_size(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        self.temperature, self.queue_start, self.freeze_prototypes = temperature, queue_start, freeze_prototypes
        self.sinkhorn_temperature, self.sinkhorn_iterations = sinkhorn_temperature, sinkhorn_iterations
        self.projector = projector(self.face.width, projector_hidden, projector_out, last="bias")
        self.prototypes = Prototypes(projector_out, unset(prototypes, BY_PICTURES["prototypes"]))
        self.queues = nn.ModuleList(Queue(queue, projector_out) for _ in range(2 if queue else 0))
        self.load_rest_of(common.get("weights"))

    @torch.no_grad()
    def sort(self, z: Tensor, which: int) -> Tensor:
        """Projections of a global view -> shares of prototypes, `(B, E)` -> `(B, K)`; earlier ones are sorted along."""
        rows = z.detach().float()
        if self.queues:
            queue: Any = self.queues[which]
            if self.step >= self.queue_start * self.scheduled_steps:
                rows = torch.cat([self.share_of(queue.rows), rows])
            queue.add(z.float())
        return sinkhorn(self.prototypes(rows), self.sinkhorn_temperature, self.sinkhorn_iterations)[-len(z) :]

    @staticmethod
    def share_of(rows: Tensor) -> Tensor:
        """This process's part of rows that all have, as many as the others': sorting counts on it."""
        world = world_size()
        return rows if world == 1 else rows[: len(rows) // world * world][dist.get_rank() :: world]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = global_and_local(self, batch)
        z = F.normalize(self.projector(self.embed_views(views)), dim=1).unflatten(0, (len(views), -1))  # (V, B, E)
        codes = torch.stack([self.sort(z[i], i) for i in range(2)])  # (2, B, K)
        loss = cross_entropy_between_views(self.prototypes(z) / self.temperature, codes)
        one, mean = entropies(codes[0])
        self.record(loss=loss, teacher_entropy=one, teacher_marginal=mean, spread=spread(z[0]))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.step < self.freeze_prototypes * self.scheduled_steps:
            self.prototypes.weight.grad = None
