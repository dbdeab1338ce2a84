"""A timm backbone by name, at a picture size, and what it takes to make it again."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import timm
from torch import nn

from visiontune.backbones.stem import make_stem_small
from visiontune.errors import UserError, near, some

Stem = Literal["timm", "small"]
# Among the arguments that a config.json gives to timm: a network with another stem would load many of these weights without a word, so
# timm must refuse the folder, and does, by this name.
STEM_KEY = "visiontune_stem"


@dataclass(frozen=True)
class Spec:
    """What it takes to build this backbone again.

    Attributes:
        name: timm's name of the architecture.
        args: keyword arguments for `timm.create_model`, plain types only.
        image_size: pixels of a side; the size that the backbone was made for.
        channels: channels of its pictures.
        stem: `timm` as timm makes it, `small` for pictures of 32 to 64 pixels.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    stem: Stem = "timm"

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Spec":
        """As the `config.json` of exported weights tells."""
        args = dict(config.get("model_args") or {})
        channels, H, W = config.get("pretrained_cfg", {}).get("input_size", (3, 224, 224))
        stem = args.pop(STEM_KEY, "timm")
        return cls(config["architecture"], args, H if H == W else (H, W), args.pop("in_chans", channels), stem)

    @property
    def shape_args(self) -> dict[str, Any]:
        """The arguments that do not depend on the pictures."""
        return {k: v for k, v in self.args.items() if k != "img_size"}


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(timm.list_models())


def check_name(name: str) -> str | None:
    """None for a name that timm knows, else what is wrong with it, as the end of an error sentence."""
    architecture = name.split(".", 1)[0]
    if architecture in _names():
        return None
    hint = near(architecture, _names())
    if not hint:
        alike = sorted(n for n in _names() if n.startswith(architecture[:6]))
        hint = f"; timm has {some(alike)}" if alike else "; `python -m visiontune list backbones 'WILD*CARD'` lists them"
    return f"timm {timm.__version__} knows no backbone of this name{hint}"


def timm_size(name: str) -> int | tuple[int, int] | None:
    """Pixels of a side, or height and width, of the pictures that timm's weights of this name were trained on; None if timm tells none."""
    try:
        cfg: Any = timm.get_pretrained_cfg(name)
    except RuntimeError:  # weights that the architecture has not; told where the backbone is made
        return None
    if cfg is None:
        return None
    _, H, W = cfg.input_size
    return H if H == W else (H, W)


def create(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    num_classes: int = 0,
    pretrained: bool = False,
    args: dict[str, Any] | None = None,
    stem: Stem = "timm",
) -> nn.Module:
    """Make a timm backbone and note on it (`model.spec`) how it was made.

    Args:
        name: timm's name, with or without a weights tag (`vit_small_patch16_224.augreg_in21k`).
        image_size: pixels; given to the architectures that fix their size at construction, ignored by those that take any.
            None means timm's size.
        channels: channels of the pictures.
        num_classes: 0 for a bare backbone, else the outputs of timm's own classifier.
        pretrained: fetch timm's weights (the only use of the network in this module).
        args: more keyword arguments for `timm.create_model`.
        stem: `small` for convnets on pictures of 32 to 64 pixels, see `visiontune.backbones.stem`.

    Raises:
        UserError: if timm knows no such name, or the architecture refuses the arguments or the stem.
    """
    if stem not in get_args(Stem):
        raise UserError(f"backbone.stem: got {stem!r}; allowed: {', '.join(get_args(Stem))}")
    if pretrained and stem != "timm":
        raise UserError(
            f"backbone.stem: got {stem!r}, but timm's weights were made with timm's stem; leave backbone.stem out, or set "
            "backbone.weights: random"
        )
    if problem := check_name(name):
        raise UserError(f"backbone.name: got {name!r}; {problem}")
    args = dict(args or {})
    given: dict[str, Any] = dict(args, in_chans=channels, num_classes=num_classes, pretrained=pretrained)
    if image_size is None or "img_size" in args:
        model = _make(name, given)
    else:
        # Whether an architecture has an img_size is known to its constructor alone: convnets refuse the argument by name.
        try:
            model = _make(name, given | {"img_size": image_size})
            args["img_size"] = image_size
        except UserError as error:
            if "'img_size'" not in str(error):
                raise
            model = _make(name, given)
    cfg: Any = model.pretrained_cfg
    if stem == "small":
        make_stem_small(model, channels)
    size = args.get("img_size") or image_size or cfg["input_size"][-1]
    noted: Any = model
    noted.spec = Spec(name=name.split(".", 1)[0], args=_plain(args), image_size=size, channels=channels, stem=stem)
    return model


def _make(name: str, given: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **given)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if given["pretrained"] and not isinstance(error, TypeError):
            raise UserError(
                f"backbone.weights: got 'timm', but timm could not fetch weights for {name} ({reason}); "
                "without a network, give a weights file, or random"
            ) from error
        own = {k: v for k, v in given.items() if k not in ("in_chans", "num_classes", "pretrained", "img_size")}
        raise UserError(f"backbone.args: {name} refuses {_plain(own)}: {reason}") from error


def _plain(args: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in args.items()}


def spec_of(model: nn.Module) -> Spec:
    """How a timm module was made: noted by `create`, or read from what timm keeps on its modules."""
    if isinstance(spec := getattr(model, "spec", None), Spec):
        return spec
    cfg = getattr(model, "pretrained_cfg", None)
    if not cfg:
        raise UserError(f"backbone: expected a timm module but got {type(model).__name__}, which has no `pretrained_cfg`")
    args = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in ("num_classes", "in_chans", "pretrained")}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or tuple(cfg["input_size"][1:])
    return Spec(
        name=cfg["architecture"],
        args=_plain(args),
        image_size=size[0] if size[0] == size[1] else tuple(size),
        channels=getattr(model, "in_chans", cfg["input_size"][0]),
    )
