"""What of a backbone is trained, and that the rest stays as it is: weights, running statistics, dropout."""

from collections.abc import Iterable, Iterator

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from visiontune.backbones import layer_order
from visiontune.errors import UserError


def classifier_parameters(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """Of timm's classifier, or of both of a distilled model's."""
    heads = backbone.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        yield from head.parameters()


def train_only(backbone: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    backbone.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def last_blocks(backbone: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the last `count` blocks and of all behind them: the last norm, the pooling, the classifier.

    Blocks are what timm's grouping of the family gives a depth of its own between the stem and the head; a down-sampling layer belongs
    to the block behind it.

    Raises:
        UserError: if there are fewer.
    """
    order = layer_order(backbone)
    names = {id(p): n for n, p in backbone.named_parameters()}
    head = min(order[names[id(p)]] for p in classifier_parameters(backbone))
    there = head - 1
    if count > there:
        raise UserError(f"tune: got last:{count}, but {type(backbone).__name__} has {there} blocks; give last:{there} or less, or full")
    return [p for n, p in backbone.named_parameters() if order[n] >= head - count]


def first_stages(backbone: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the stem and the first `count` stages; of a plain transformer, whose blocks timm does not bundle, of blocks.

    Raises:
        UserError: if there are fewer.
    """
    order = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    there = max(order.values())
    if count > there:
        raise UserError(f"head.freeze_stages: got {count}, but {type(backbone).__name__} has {there}; give {there} or less")
    return [p for n, p in backbone.named_parameters() if order[n] <= count]


def batch_norms(backbone: nn.Module) -> Iterator[_BatchNorm]:
    """timm's BatchNormAct2d, which also activates, among them."""
    return (m for m in backbone.modules() if isinstance(m, _BatchNorm))


def freeze_batch_norms(backbone: nn.Module) -> None:
    """Scale and shift; `rest_frozen` keeps the statistics. Together they are timm's `freeze_batch_norm_2d`, but no module is replaced."""
    for norm in batch_norms(backbone):
        norm.requires_grad_(False)


def rest_frozen(backbone: nn.Module, *, batch_norms_too: bool = False) -> None:
    """Evaluation mode for every part whose parameters are all frozen: no running statistics move, nothing is dropped."""
    frozen = {id(p) for p in backbone.parameters() if not p.requires_grad}
    for part in backbone.modules() if frozen else ():
        if (own := list(part.parameters())) and all(id(p) in frozen for p in own):
            part.eval()
    for norm in batch_norms(backbone) if batch_norms_too else ():
        norm.eval()
