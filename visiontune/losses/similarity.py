"""Cosine similarity of two views, the loss of BYOL and SimSiam.

B pictures, D width.
"""

import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.precision import full_precision


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean of the negative cosine between rows of `p` and `z`, both `(B, D)` or `(..., D)`; -1 where they point the same way.

    SimSiam (Chen and He 2020, arXiv 2011.10566), equation 1. Who must not get a gradient is the caller's to say: `z.detach()`.
    BYOL's (Grill et al. 2020, arXiv 2006.07733, equation 2) is `2 + 2 * negative_cosine(p, z)`.
    """
    return -F.cosine_similarity(p, z, dim=-1).mean()


@full_precision
def feature_distance(told: Tensor, wanted: Tensor, cosine_weight: float = 0.9) -> Tensor:
    """Mostly the angle, a little the length: `cosine_weight` of 1 - cosine, the rest smooth L1; `(..., D)` each, 0 where they agree.

    AM-RADIO (Ranzinger et al. 2024, arXiv 2312.06709), section 3.4, for patch features.
    """
    return cosine_weight * (1 + negative_cosine(told, wanted)) + (1 - cosine_weight) * F.smooth_l1_loss(told, wanted)
