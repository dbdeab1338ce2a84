"""NT-Xent, the loss of SimCLR. Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"
(arXiv 2002.05709), equation 1.

B pairs on this process, G pairs on all processes, D width, R rows of a block.

The logits S, (2B, 2G), are never in memory as a whole. With z the rows of this process and k the rows of all, both of length one,

    S_ij = z_i . k_j / T                                S_ij = -inf where j is the row i itself
    loss = 1 / 2B  sum_i  log sum_j exp S_ij - S_ip     p is the other view of i's picture

the derivative with respect to S needs nothing but its own row,

    d loss / d S_ij = g_ij = (softmax_j S_ij - [j = p]) / 2B
    d loss / d z_i  = 1 / T  sum_j g_ij k_j             d loss / d k_j = 1 / T  sum_i g_ij z_i

so one sweep over blocks of R rows gives the loss and both gradients, and the backward pass needs no more than 2B + 2G rows of width D.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import gather_with_grad

# Logits in a block. Measured on two cores with 4096 rows: time is within 15 % from 2**18 to 2**24, so take what stays in the cache (4 MB
# in fp32). A GPU wants fewer and larger launches (64 MB; not measured).
BLOCK_CPU, BLOCK_GPU = 2**20, 2**24


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross entropy over two views of the same pictures.

    Each row's positive is the other view of its picture; the negatives are all other rows of all processes. The mean over processes
    is the loss of the joined batch, and so is its gradient under DistributedDataParallel. Memory grows with G, not with its square.
    It can be differentiated once: a gradient of its gradient raises.

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
        first = dist.get_rank() * len(z0) if len(keys0) > len(z0) else 0  # this process's first row among all
        return _BlockwiseCrossEntropy.apply(torch.cat([z0, z1]), torch.cat([keys0, keys1]), first, temperature)


class _BlockwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, first: int, temperature: float) -> Tensor:  # type: ignore[override]
        B, G = len(rows) // 2, len(keys) // 2
        R = max(1, (BLOCK_CPU if rows.device.type == "cpu" else BLOCK_GPU) // len(keys))
        wanted = any(ctx.needs_input_grad[:2])
        scaled, losses = rows / temperature, rows.new_empty(2 * B)
        d_rows, d_keys = torch.empty_like(rows), torch.zeros_like(keys)
        for view in (0, 1):
            for start in range(0, B, R):
                at = slice(view * B + start, view * B + min(start + R, B))
                block = scaled[at] @ keys.T  # (R, 2G)
                # the columns of a block's own rows, and of their other views, are diagonals
                own, positive = (block.diagonal(first + start + v * G) for v in (view, 1 - view))
                own.fill_(float("-inf"))
                highest = block.amax(dim=1, keepdim=True)
                losses[at] = highest[:, 0] - positive
                total = block.sub_(highest).exp_().sum(dim=1, keepdim=True)  # (R, 1)
                losses[at] += total[:, 0].log()
                if wanted:
                    positive.sub_(total[:, 0])  # the block is now g, but for total and 2B
                    d_rows[at] = block @ keys / total
                    d_keys.addmm_(block.T, rows[at] / total)
        if wanted:
            share = 1 / (2 * B * temperature)
            ctx.save_for_backward(d_rows.mul_(share), d_keys.mul_(share))
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        # torch's `once_differentiable` would let it pass: the saved gradients look like constants, which they are not
        if torch.is_grad_enabled():
            raise RuntimeError("nt_xent can be differentiated once but was asked for a graph of its gradient (create_graph=True).")
        d_rows, d_keys = ctx.saved_tensors
        return grad * d_rows, grad * d_keys, None, None
