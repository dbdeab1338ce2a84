"""The small networks between an embedding and a joint-embedding loss, thrown away after pretraining."""

from typing import Literal

from torch import nn


def projector(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    layers: int = 2,
    norm: bool = True,
    last: Literal["norm", "scaled_norm", "shifted_norm", "bias", "plain"] = "norm",
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with batch norm and activation between them, `(B, in_dim)` -> `(B, out_dim)`.

    Methods differ in the last layer, and the differences matter to them: `norm` ends with a batch norm without scale and shift (MoCo v3,
    SimSiam), `scaled_norm` with one without shift (SimCLR), `shifted_norm` with a whole one, `bias` with a plain linear layer (BYOL,
    MoCo v2), `plain` with one without bias (Barlow Twins, VICReg). Linear layers in front of a batch norm have no bias: the norm would
    take it out again.

    Args:
        in_dim: width of what goes in.
        hidden_dim: width of the layers between.
        out_dim: width of what comes out.
        layers: linear layers.
        norm: batch norms between them.
        last: how it ends.
        activation: between layers.
    """
    sizes = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
    steps: list[nn.Module] = []
    for i in range(layers - 1):
        steps.append(nn.Linear(sizes[i], sizes[i + 1], bias=not norm))
        if norm:
            steps.append(nn.BatchNorm1d(sizes[i + 1]))
        steps.append(activation(inplace=True) if activation is nn.ReLU else activation())
    steps.append(nn.Linear(sizes[-2], out_dim, bias=last == "bias"))
    if last == "norm":
        steps.append(nn.BatchNorm1d(out_dim, affine=False))
    elif last.endswith("norm"):
        final = nn.BatchNorm1d(out_dim)
        if last == "scaled_norm":
            final.register_parameter("bias", None)
        steps.append(final)
    return nn.Sequential(*steps)
