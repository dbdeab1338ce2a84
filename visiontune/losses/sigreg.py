"""SIGReg: embeddings as a standard normal cloud. Balestriero and LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning
Without the Heuristics" (arXiv 2511.08544), section 4.

B pictures of this process, N of all processes, D width, M directions, T points of integration.
"""

import torch
from torch import Tensor

from visiontune.losses.gather import sum_with_grad, world_size
from visiontune.losses.precision import full_precision


@full_precision
def epps_pulley(x: Tensor, points: int = 17, limit: float = 5.0) -> Tensor:
    """How far each column is from a standard normal sample: the Epps-Pulley statistic, `(..., B, M)` -> `(..., M)`.

    N times the squared distance of the empirical characteristic function from exp(-t^2 / 2), weighted by the same and integrated by
    the trapezoidal rule over [-limit, limit]. The empirical function of a real sample is even in its real and odd in its imaginary
    part, so half of the points do.

    Args:
        x: samples, of which all processes hold a part.
        points: of integration, odd.
        limit: of integration.
    """
    N = x.shape[-2] * world_size()
    t = torch.linspace(0, limit, points // 2 + 1, device=x.device, dtype=x.dtype)
    normal = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * limit / (points // 2))  # twice the step, for both signs of t
    weight[0] = weight[-1] = limit / (points // 2)
    angles = x.unsqueeze(-1) * t  # (..., B, M, T)
    both = sum_with_grad(torch.stack([angles.cos().sum(dim=-3), angles.sin().sum(dim=-3)])) / N  # (2, ..., M, T)
    distance = (both[0] - normal).square() + both[1].square()
    return N * (distance * normal * weight).sum(dim=-1)


def sigreg(z: Tensor, *, directions: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """The mean Epps-Pulley statistic over random directions, `(..., B, D)` -> a scalar.

    Args:
        z: embeddings, of one or several views.
        directions: how many, drawn anew at each step.
        generator: must give the same directions on every process: seed it with the step.
    """
    wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    towards = torch.randn(z.shape[-1], directions, device=z.device, dtype=wide.dtype, generator=generator)
    with torch.autocast(device_type=z.device.type, enabled=False):
        return epps_pulley(wide @ (towards / towards.norm(dim=0))).mean()
