"""Spread of embeddings over their directions: the usual look-out for collapse. Chen and He 2020, "Exploring Simple Siamese
Representation Learning" (arXiv 2011.10566), figure 2.

N pictures, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(z: Tensor) -> Tensor:
    """How far apart normalised embeddings lie: 1 where they point everywhere alike, 0 where all pictures look the same.

    Rows are scaled to length 1; the standard deviation over pictures, averaged over dimensions, is given in units of `1 / sqrt(D)`,
    what an isotropic cloud has. The deviation is the population's, so the value never exceeds 1.

    Args:
        z: embeddings or projections, `(N, D)`.

    Returns:
        A scalar in [0, 1] on `z`'s device, float32 (float64 for float64). A measure, not a loss: it has no gradient.

    Raises:
        ValueError: if `z` is not a matrix.

    >>> round(spread(torch.eye(8)).item(), 4), spread(torch.ones(8, 4)).item()
    (0.9354, 0.0)
    """
    if z.ndim != 2:
        raise ValueError(f"Expected `z` to be of shape (N, D) but got {tuple(z.shape)}.")
    z = z.detach()
    with torch.autocast(device_type=z.device.type, enabled=False):  # fp32: differences of nearly equal numbers
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        return z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5
