"""Weights into a backbone: whole or not at all, and a word about what was matched, resized and left out.

The names in a file are compared with the backbone's under every prefix that occurs, so `module.`, `backbone.`, `encoder.`,
`teacher.backbone.` and the like need no table. Only where no name agrees at all, and every shape and every last part of a name
(`weight`, `bias`, `running_mean`, ...) does, are tensors taken by order.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import timm
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch import Tensor, nn

from visiontune.backbones.create import Spec, create
from visiontune.backbones.files import read_config, read_weights, tensors_with
from visiontune.errors import UserError, counted, some

# Not learned, or rebuilt by the model itself: a file may lack them.
EXTRAS = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
# Which of several equally fitting sets of tensors is meant: averaged weights are the better ones in every method that keeps them.
PREFERRED = ("ema", "teacher", "momentum", "target")
GIVE_IT = "Give the backbone that the file was made with as backbone.name (and its backbone.args and backbone.stem)"


@dataclass
class LoadReport:
    """What `load_weights` did.

    Attributes:
        source: the file, and the place and prefix inside it.
        matched: number of tensors taken.
        resized: names of tensors that were interpolated or adapted, with both shapes.
        ignored: names in the file that no part of the backbone wanted.
        missing: names that stayed as they were; only with `partial`.
        by_order: names did not agree and tensors were taken by their order.
        layout: `"mae"` for files laid out as facebookresearch/mae's, else `"timm"`.
        untold: a stem other than timm's that the file does not tell of, though all fits.
    """

    source: str
    matched: int = 0
    resized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    by_order: bool = False
    layout: str = "timm"
    untold: str = ""

    def lines(self) -> list[str]:
        out = [f"{counted(self.matched, 'tensor')} of the backbone loaded from {self.source}"]
        if self.by_order:
            out.append("no name agreed; taken by order, since every shape and kind of tensor agrees")
        if self.resized:
            out.append(f"resized: {some(self.resized)}")
        if self.ignored:
            out.append(f"not part of the backbone: {some(self.ignored)}")
        if self.untold:
            out.append(f"stem {self.untold}: the file does not tell with which stem it was made, and its shapes fit")
        if self.missing:
            out.append(f"NOT LOADED, left at random (backbone.partial: true): {some(self.missing, 10)}")
        return out


def load_weights(model: nn.Module, path: str | Path, *, partial: bool = False) -> LoadReport:
    """Load a file or exported folder into a timm backbone.

    All of the backbone's tensors except its classifier must be found. Position embeddings, patch and input-channel weights and
    relative-position tables of another size are resized by timm's functions. With `partial`, what is missing or of another shape
    stays as it was, and is listed.

    Raises:
        UserError: if the file cannot be read or does not hold this backbone; the model is then unchanged.
    """
    config = read_config(Path(path))
    made, needed = Spec.of(config) if config else None, getattr(getattr(model, "spec", None), "stem", "timm")
    if made and made.stem != needed and not partial:
        if wrong_name := _contradiction(path, model, made):
            raise UserError(". ".join(wrong_name))
        raise UserError(
            f"backbone.stem: got {needed!r}, but {path} was made with the stem {made.stem!r}; set backbone.stem: {made.stem}, "
            "or backbone.partial: true to load what fits"
        )
    wanted = model.state_dict()
    heads = head_names(model)
    body = {k: v for k, v in wanted.items() if not k.startswith(heads)}
    sets = read_weights(path)

    place, prefix, tensors = _best(sets, set(body))
    report = LoadReport(source=str(path) + (f" at {place!r}" if place else "") + (f" under {prefix!r}" if prefix else ""))
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if {"mask_token", "decoder_pred.weight"} <= named.keys():
        report.layout = "mae"

    if not body.keys() & named.keys():
        ordered = _by_order(sets, body)
        if ordered is None:
            raise UserError(_no_fit(path, model, made, body, tensors))
        named, report.by_order = ordered, True

    grid = _grid_of(path, named)
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, target in body.items():
        if name not in named:
            if not name.endswith(EXTRAS):
                report.missing.append(name)
            continue
        value = named[name]
        turned = name == "pos_embed" and grid is not None and grid != tuple(getattr(model.patch_embed, "grid_size", grid))
        if value.shape != target.shape or turned:
            resized = _resize(model, name, value, target, grid)
            if resized is None:
                wrong.append(f"{name} {tuple(value.shape)} (needed {tuple(target.shape)})")
                continue
            report.resized.append(f"{name} {tuple(value.shape)} -> {tuple(target.shape)}")
            value = resized
        found[name] = value

    rest = [k for k in named if k not in wanted]
    own = {k.split(".", 1)[0] for k in body}
    deeper = [k for k in rest if k.split(".", 1)[0] in own and not k.endswith(EXTRAS) and not k.startswith(heads)]
    if (report.missing or wrong or deeper) and not partial:
        raise UserError(_misfit(path, model, made, report.missing, wrong, deeper, len(found)))
    report.missing += wrong
    report.ignored = rest + [k for k in tensors if not k.startswith(prefix)] + [k for k in named if k.startswith(heads)]
    report.matched = len(found)
    report.untold = needed if made is None and needed != "timm" else ""
    model.load_state_dict(found, strict=False)
    return report


def rebuild(path: Path) -> nn.Module:
    """The network of an exported folder or file with its weights, its classifier if it has one, and the stem that plain timm cannot build.

    Raises:
        UserError: if the weights are not those of its config.
    """
    config = read_config(path)
    assert config is not None, "the caller looks for it"
    spec, classes = Spec.of(config), config.get("num_classes", 0)
    try:
        if path.is_dir() and spec.stem == "timm":
            return timm.create_model(f"local-dir:{path}", pretrained=True)
        model = create(spec.name, image_size=spec.image_size, channels=spec.channels, num_classes=classes, args=spec.args, stem=spec.stem)
        model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors" if path.is_dir() else path))
    except RuntimeError as error:
        raise UserError(f"load: the tensors of {path} are not those of {spec.name}, which it says it is; export it again") from error
    except (OSError, safetensors.SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"load: the weights of {path} cannot be read ({cause}); copy or export it again") from error
    return model


def load_beside(module: nn.Module, path: str | Path) -> list[str]:
    """Load what stands beside the backbone in a method (a decoder, a projector), where a file holds it; in words what came of it.

    A checkpoint of the method holds all; of other projects', facebookresearch/mae's hold MAE's decoder under the same names. Whole or
    not at all.
    """
    own = {k: v for k, v in module.state_dict().items() if k not in ("mean", "std") and not k.startswith(("backbone.", "teacher."))}
    if not own:
        return []
    parts = {k.split(".", 1)[0] for k in own}
    named = ", ".join(sorted(parts))
    found = {k: v for k, v in tensors_with(path, next(reversed(own))).items() if k.split(".", 1)[0] in parts}
    if not found:
        return [f"{named}: start at random, for {path} does not hold them (checkpoints/last.ckpt of a run of the same method does)"]
    misfits = [k for k in own if k not in found]
    misfits += [f"{k} {tuple(v.shape)}, needed {tuple(own[k].shape)}" for k, v in found.items() if k in own and v.shape != own[k].shape]
    misfits += [k for k in found if k not in own]
    if misfits:
        return [f"{named}: NOT loaded from {path}, they start at random; these differ: {some(misfits, 3)}"]
    module.load_state_dict(found, strict=False)
    return [f"{counted(len(found), 'tensor')} of {named} loaded from {path}"]


def head_names(model: nn.Module) -> tuple[str, ...]:
    """What the names of a timm module's classifiers begin with (`head.fc.`)."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(n + "." for n in names)


def _best(sets: list[tuple[str, dict[str, Tensor]]], body: set[str]) -> tuple[str, str, dict[str, Tensor]]:
    """The set of tensors and the prefix under which most of the backbone's names occur."""
    ranked: list[tuple[int, int, int]] = []
    prefixes: list[list[str]] = []
    for i, (place, tensors) in enumerate(sets):
        hits: Counter[str] = Counter()
        for key in tensors:
            parts = key.split(".")
            for j in range(len(parts)):
                if ".".join(parts[j:]) in body:
                    hits["".join(p + "." for p in parts[:j])] += 1
        prefixes.append(list(hits))
        for j, (prefix, count) in enumerate(hits.items()):
            preferred = any(word in f"{place}.{prefix}".lower() for word in PREFERRED)
            ranked.append((count * 2 + preferred, -i, -j))
    if not ranked:
        largest = max(range(len(sets)), key=lambda i: len(sets[i][1]))
        return sets[largest][0], "", sets[largest][1]
    _, i, j = max(ranked)
    return sets[-i][0], prefixes[-i][-j], sets[-i][1]


def _by_order(sets: list[tuple[str, dict[str, Tensor]]], body: dict[str, Tensor]) -> dict[str, Tensor] | None:
    learned = {k: v for k, v in body.items() if not k.endswith(EXTRAS)}
    for _, tensors in sets:
        given = [(k, v) for k, v in tensors.items() if not k.endswith(EXTRAS)]
        if not 0 <= len(given) - len(learned) <= 2:  # a classifier's weight and bias may follow
            continue
        pairs = list(zip(learned.items(), given, strict=False))
        if all(a.shape == b.shape and n.rsplit(".")[-1] == m.rsplit(".")[-1] for (n, a), (m, b) in pairs):
            return {n: b for (n, _), (_, b) in pairs}
    return None


def _grid_of(path: str | Path, named: dict[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of patches that a file's position embedding was made for, where a config.json beside it tells."""
    config = read_config(Path(path))
    patch = named.get("patch_embed.proj.weight")
    size = (config or {}).get("pretrained_cfg", {}).get("input_size")
    if patch is None or patch.ndim != 4 or not size:
        return None
    return size[1] // patch.shape[2], size[2] // patch.shape[3]


def _resize(model: nn.Module, name: str, value: Tensor, target: Tensor, old: tuple[int, int] | None) -> Tensor | None:
    """`value` brought to the shape of `target` where timm knows how, else None.

    `old` is the grid of the file's patches; a file that does not tell is taken for square pictures, as all published ones are.
    """
    if name.endswith("pos_embed") and value.ndim == 3 and value.shape[-1] == target.shape[-1]:
        prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
        side = int((value.shape[1] - prefix) ** 0.5)
        old = old or (side, side)
        if old[0] * old[1] != value.shape[1] - prefix:
            return None
        grid = model.patch_embed.grid_size
        return resample_abs_pos_embed(value, list(grid), old_size=list(old), num_prefix_tokens=prefix)
    if name.endswith("relative_position_bias_table"):
        window = model.get_submodule(name.rpartition(".")[0]).window_size
        return resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=tuple(target.shape))
    if value.ndim == 4 and value.shape[0] == target.shape[0]:
        if value.shape[2:] != target.shape[2:] and value.shape[1] == target.shape[1] and name.startswith("patch_embed"):
            return resample_patch_embed(value, list(target.shape[2:]))
        if value.shape[2:] == target.shape[2:] and value.shape[1] == 3:
            return adapt_input_conv(target.shape[1], value)
    return None


def _no_fit(path: str | Path, model: nn.Module, made: Spec | None, body: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    what, cure = _contradiction(path, model, made) or (f"backbone.weights: {path} is not of this backbone ({_name(model)})", GIVE_IT)
    return f"{what}: no name agrees; it holds {some(tensors, 3)}; needed {some(body, 3)}. {cure}"


def _misfit(
    path: str | Path, model: nn.Module, made: Spec | None, missing: list[str], wrong: list[str], deeper: list[str], fits: int
) -> str:
    parts = [f"{counted(fits, 'tensor')} fit{'s' if fits == 1 else ''}"]
    if missing:
        parts.append(f"{len(missing)} are not in the file: {some(missing, 3)}")
    if wrong:
        parts.append(f"{len(wrong)} have another shape: {some(wrong, 3)}")
    if deeper:
        parts.append(f"{len(deeper)} of the file have no place: {some(deeper, 3)}")
    what, cure = _contradiction(path, model, made) or (
        f"backbone.weights: {path} does not hold this backbone whole ({_name(model)})",
        GIVE_IT,
    )
    return f"{what}: {'; '.join(parts)}. {cure}, or set backbone.partial: true to load what fits"


def _contradiction(path: str | Path, model: nn.Module, made: Spec | None) -> tuple[str, str] | None:
    """What is wrong and the cure, where a config.json beside the file names another architecture."""
    if made is None or made.name == _name(model):
        return None
    return f"backbone.name: got {_name(model)}, but {path} was made as {made.name}", f"Leave backbone.name out, or say {made.name}"


def _name(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture", type(model).__name__)
