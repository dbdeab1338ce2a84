"""KoLeo: keep embeddings of different pictures apart. Sablayrolles et al. 2019 (arXiv 1806.03198), equation 4; as in DINOv2
(arXiv 2304.07193), section 4.

B pictures of this process, N of all processes, D width.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import gather_with_grad
from visiontune.losses.precision import full_precision


@full_precision
def koleo(z: Tensor, eps: float = 1e-8) -> Tensor:
    """Minus the mean log distance of each row to its nearest neighbour, rows normalised.

    The neighbour is looked for among the pictures of all processes.

    Args:
        z: one embedding a picture, `(B, D)`.
        eps: below which distances are not told apart.
    """
    z = F.normalize(z, dim=1, eps=eps)
    everyone = gather_with_grad(z)  # (N, D)
    B, N = z.shape[0], everyone.shape[0]
    first = dist.get_rank() * B if N > B else 0
    with torch.no_grad():
        similarity = z @ everyone.T
        similarity.scatter_(1, torch.arange(first, first + B, device=z.device).unsqueeze(1), -2.0)  # below any cosine
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(z, everyone[nearest], eps=eps)
    return -(distance + eps).log().mean()
