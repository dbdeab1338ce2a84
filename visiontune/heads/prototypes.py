"""Prototypes: directions that embeddings are compared with, and the head of DINO in front of them.

B pictures, E width of the projection, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import mean_over_processes
from visiontune.losses.precision import full_precision


class Prototypes(nn.Module):
    """Cosine of each embedding with K directions, `(..., E)` -> `(..., K)`.

    DINO's weight-normed last layer with its lengths held at 1, and SwAV's prototypes, normalised after every step, are both this.
    """

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as a linear layer; only directions count

    @full_precision  # at a temperature of 0.04 half precision's third digit is a tenth of a logit
    def forward(self, z: Tensor) -> Tensor:
        return F.linear(F.normalize(z, dim=-1), F.normalize(self.weight, dim=-1).to(z.dtype))


class PrototypeHead(nn.Module):
    """Projector with a narrow end, then prototypes. DINO (arXiv 2104.14294), section 3.1 and appendix C.

    Args:
        in_dim: width of the embedding.
        hidden_dim: of the projector's layers.
        bottleneck: width of the projection E.
        prototypes: K.
        layers: linear layers of the projector.
        norm: batch norms in it, which suit convnets; the paper's transformers go without.
    """

    def __init__(self, in_dim: int, *, hidden_dim: int, bottleneck: int, prototypes: int, layers: int, norm: bool) -> None:
        super().__init__()
        self.mlp = projector(in_dim, hidden_dim, bottleneck, layers=layers, norm=norm, last="bias", activation=nn.GELU)
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(self.mlp(x))


class Centring(nn.Module):
    """A teacher's shares of prototypes, less what it says of all pictures alike. DINO, section 3.1, "Avoiding collapse".

    Attributes:
        center: `(K,)`, a running mean of the teacher's logits over all processes; part of checkpoints.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """`(..., K)` -> probabilities, with the mean of earlier batches; then this batch joins the mean."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        shares = F.softmax((wide - self.center) / temperature, dim=-1)
        self.center.lerp_(mean_over_processes(wide).to(self.center.dtype), 1 - self.momentum)
        return shares
