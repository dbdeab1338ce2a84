"""How far embeddings of different pictures are apart: the plainest sign of a collapse. B pictures, D width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.precision import full_precision


@torch.no_grad()
@full_precision
def spread(z: Tensor) -> Tensor:
    """Mean standard deviation of the dimensions of normalised rows, times the root of D, `(B, D)` -> a scalar.

    About 1 for a cloud without direction, 0 where all pictures are one point. SimSiam (arXiv 2011.10566), section 4.1.
    """
    return F.normalize(z, dim=1).std(dim=0).mean() * z.shape[1] ** 0.5
