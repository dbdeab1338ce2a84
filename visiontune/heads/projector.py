"""The small network between an embedding and a joint-embedding loss, thrown away after pretraining."""

from torch import nn


def projector(in_dim: int, hidden_dim: int, out_dim: int, *, layers: int = 2, last_norm: bool = True) -> nn.Sequential:
    """Linear, batch norm, ReLU ... linear[, batch norm without scale], `(B, in_dim)` -> `(B, out_dim)`.

    Source: SimCLR (arXiv 2002.05709), section 4.2, and the authors' code, where the last layer is normalised too. Linear layers in
    front of a batch norm have no bias: the norm would take it out again.
    """
    sizes = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
    steps: list[nn.Module] = []
    for i in range(layers):
        last = i == layers - 1
        normed = not last or last_norm
        steps.append(nn.Linear(sizes[i], sizes[i + 1], bias=not normed))
        if normed:
            steps.append(nn.BatchNorm1d(sizes[i + 1], affine=not last))
        if not last:
            steps.append(nn.ReLU(inplace=True))
    return nn.Sequential(*steps)
