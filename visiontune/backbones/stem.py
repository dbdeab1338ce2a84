"""A stem for pictures of 32 to 64 pixels: 3x3 convolutions of stride 1 and no pooling, where timm's convnets begin with strides of 2 or 4.

As in the ResNets for CIFAR of He et al. 2016 (arXiv 1512.03385, section 4.2) and of SimCLR (arXiv 2002.05709, appendix B.9). timm has no
such option (`stem_type="cifar"` is accepted and does nothing), so a network is changed after timm made it. Names of parameters stay.
"""

import inspect
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import nn

from visiontune.backbones.face import has_attention, levels, undisturbed
from visiontune.errors import UserError

POOLS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)
# Top-level parts that hold a whole network: there the stem is the child that holds the first convolution.
WHOLE = ("features", "body")
TRIAL = 64  # pixels; enough for every stride of 32
OTHER = "take another convnet, such as resnet18 or efficientnet_b0"


def make_stem_small(model: nn.Module, channels: int = 3) -> None:
    """Change a timm convnet in place: its first convolution becomes 3x3, every stride of the stem 1, and the pool behind it goes.

    A kernel that shrinks is drawn anew; all other weights stay.

    Args:
        model: as timm made it.
        channels: of its pictures.

    Raises:
        UserError: for architectures where this makes no sense, with the cure.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)
    firsts = _first_convolutions(model)
    if problem := _unfit(model, firsts):
        raise UserError(f"backbone.stem: small does not suit {name}: {problem}")
    container, stem, behind = _parts(model, next(iter(firsts)))
    if not any(isinstance(m, (nn.Conv2d, *POOLS)) and _stride(m) > 1 for m in stem.values()):
        raise UserError(f"backbone.stem: small changes nothing in {name}, whose stem has no stride; leave backbone.stem out")

    before, after, found = (0, 0), (0, 0), ""
    try:
        before = _trial(model, behind, channels)
        _change(model, container, stem, firsts)
        after = _trial(model, behind, channels)
        found = f"its last map of {TRIAL} pixels has {before[1]} rows with timm's stem and {after[1]} with the small one"
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:  # an architecture that the rules above do not foresee
        found = str(error).splitlines()[0]
    # What the stem does not shrink any more must arrive in the last map.
    if after[0] <= before[0] or after[1] * before[0] != before[1] * after[0]:
        raise UserError(f"backbone.stem: small does not suit {name} ({found}); {OTHER}")


def _first_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """By name; several where the stem begins with parallel branches."""
    given = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    found: dict[str, nn.Conv2d] = {}
    for name in (given,) if isinstance(given, str) else given:
        try:
            layer = model.get_submodule(name)
        except AttributeError:  # arguments can change a stem, and timm's note of it stays
            continue
        inside = [(f"{name}.{n}" if n else name, m) for n, m in layer.named_modules() if isinstance(m, nn.Conv2d)]
        found |= dict(inside[:1])
    return found


def _unfit(model: nn.Module, firsts: dict[str, nn.Conv2d]) -> str | None:
    """Why an architecture is not for this, as the end of an error sentence."""
    if not firsts:
        return f"timm does not say which convolution is its first; {OTHER}"
    first = next(iter(firsts.values()))
    if first.kernel_size == first.stride and first.stride[0] > 1:
        patch = first.stride[0]
        smaller = f"give it smaller ones: backbone.args: {{patch_size: {2 if patch < 8 else 4}}}"
        takes = "patch_size" in inspect.signature(type(model).__init__).parameters
        return f"it begins with patches of {patch} pixels, which do not overlap; {smaller if takes else OTHER}"
    if has_attention(model):
        return f"its positions attend to each other, and 4 to 16 times as many would make another network of it; {OTHER}"
    return None


def _parts(model: nn.Module, first: str) -> tuple[str, dict[str, Any], nn.Module]:
    """The part that holds the stem's convolutions, its layers and those behind it by name, and the first convolution after them."""
    path = first.split(".")
    container = ".".join(path[: 2 if path[0] in WHOLE else 1])
    stem: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if any(layer.children()):
            continue
        inside = f"{name}.".startswith((f"{container}.", "maxpool."))  # in some ResNets `maxpool` is a convolution of stride 2
        if stem and not inside and isinstance(layer, nn.Conv2d):
            return container, stem, layer
        if inside or (stem and name.rpartition(".")[0] == container.rpartition(".")[0]):
            stem[name] = layer
    raise AssertionError("no convolution behind the stem")


def _change(model: nn.Module, container: str, stem: dict[str, Any], firsts: dict[str, nn.Conv2d]) -> None:
    for name, layer in stem.items():
        if name in firsts:
            _make_3x3(layer)
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.ConstantPad2d) or (isinstance(layer, POOLS) and (_stride(layer) > 1 or name.startswith("maxpool"))):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, nn.Identity())
    for part in model.get_submodule(container).modules():
        if getattr(part, "stride", None) == 2:  # blocks of parallel branches keep a note of it, to join them into one convolution later
            part.stride = 1  # type: ignore[assignment]


def _stride(layer: Any) -> int:
    return layer.stride if isinstance(layer.stride, int) else layer.stride[0]


def _make_3x3(conv: Any) -> None:
    """In place, for timm has kinds of its own (weight standardisation, padding as TensorFlow's) that must stay what they are."""
    if conv.kernel_size[0] not in (1, 3):  # 1 is a branch beside a 3x3
        wide = conv.weight
        weight = wide.new_empty(*wide.shape[:2], 3, 3)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNets
        conv.weight, conv.kernel_size = nn.Parameter(weight), (3, 3)
        if hasattr(conv, "scale"):  # ScaledStdConv2d: a gain over the root of the fan-in
            conv.scale *= (wide[0].numel() / weight[0].numel()) ** 0.5
    conv.stride, conv.padding = (1, 1), (conv.kernel_size[0] // 2,) * 2
    if hasattr(conv, "same_pad"):  # StdConv2dSame would pad once more
        conv.same_pad = False


def _trial(model: nn.Module, behind: nn.Module, channels: int) -> tuple[int, int]:
    """Rows of positions that leave the stem, and of the last map, for one blank picture."""
    leaving: list[int] = []
    hook = behind.register_forward_pre_hook(lambda _, inputs: leaving.append(inputs[0].shape[-2]))
    try:
        with undisturbed(model), torch.no_grad():
            last = levels(model, torch.zeros(1, channels, TRIAL, TRIAL))[-1]
    finally:
        hook.remove()
    return leaving[0], last.shape[-2]
