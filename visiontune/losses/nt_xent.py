"""NT-Xent, the loss of SimCLR. Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"
(arXiv 2002.05709), equation 1.

B pairs on this process, G pairs on all processes, D width.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import gather_with_grad


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross entropy over two views of the same pictures.

    Each row's positive is the other view of its picture; the negatives are all other rows of all processes. The mean over processes
    is the loss of the joined batch, and so is its gradient under DistributedDataParallel.

    Args:
        z0: projections of the first views, `(B, D)`; they are normalised here.
        z1: projections of the second views, `(B, D)`.
        temperature: the paper's tau; small values sharpen.

    Returns:
        The mean over the 2B rows of this process, a scalar in float32 (float64 for float64).
        With all rows equal it is `log(2G - 1)`.

    Raises:
        ValueError: if the shapes differ, or `temperature` is not positive.

    >>> z = torch.ones(4, 8)
    >>> round(nt_xent(z, z).item(), 4)  # log(7)
    1.9459
    """
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"Expected `z0` and `z1` to be of one shape (B, D) but got {tuple(z0.shape)} and {tuple(z1.shape)}.")
    if not temperature > 0:
        raise ValueError(f"Expected argument `temperature` to be positive but got {temperature}.")
    # fp32: logits reach 1 / temperature, and half precision has three digits there
    with torch.autocast(device_type=z0.device.type, enabled=False):
        z0, z1 = (F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1) for z in (z0, z1))
        keys0, keys1 = gather_with_grad(z0), gather_with_grad(z1)  # (G, D) each
        B, G = z0.shape[0], keys0.shape[0]
        first = dist.get_rank() * B if G > B else 0  # this process's first row among all
        here = torch.arange(first, first + B, device=z0.device)

        logits = torch.cat([z0, z1]) @ torch.cat([keys0, keys1]).T / temperature  # (2B, 2G)
        itself = torch.cat([here, here + G]).unsqueeze(1)
        logits = logits.scatter(1, itself, float("-inf"))
        positive = torch.cat([here + G, here])
        return F.cross_entropy(logits, positive)
