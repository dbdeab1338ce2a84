"""Losses as pure functions on tensors: torch only, usable without the rest of the package."""

from visiontune.losses.barlow_twins import barlow_twins
from visiontune.losses.gather import gather_with_grad, sum_with_grad
from visiontune.losses.info_nce import info_nce, info_nce_queue
from visiontune.losses.koleo import koleo
from visiontune.losses.labels import balanced_positive_weights, balanced_weights, label_loss, log_priors, multi_label_loss
from visiontune.losses.nt_xent import nt_xent
from visiontune.losses.pixels import paint, patchify, pixel_loss, unpatchify
from visiontune.losses.prototypes import cross_entropy, cross_entropy_between_views, mean_over_processes, sinkhorn
from visiontune.losses.sigreg import epps_pulley, sigreg
from visiontune.losses.similarity import feature_distance, negative_cosine
from visiontune.losses.spread import spread
from visiontune.losses.vicreg import vicreg, vicreg_parts

__all__ = [
    "balanced_positive_weights", "balanced_weights", "barlow_twins", "cross_entropy", "cross_entropy_between_views", "epps_pulley",
    "feature_distance", "gather_with_grad", "info_nce", "info_nce_queue", "koleo", "label_loss", "log_priors", "mean_over_processes",
    "multi_label_loss", "negative_cosine", "nt_xent", "paint", "patchify", "pixel_loss", "sigreg", "sinkhorn", "spread",
    "sum_with_grad", "unpatchify", "vicreg", "vicreg_parts",
]  # fmt: skip
