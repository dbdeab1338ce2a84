"""What all runs of a comparison share: one network and one size of pictures, of which some weights tell; pictures to be judged on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visiontune import backbones, build
from visiontune.build.numbers import SIZE, size_of
from visiontune.errors import UserError
from visiontune.recipe import DetectRecipe, Judged
from visiontune.recipe.schema import is_path

# How an embedding is read off a network: weights from different methods differ in it, the network is the same. Each run takes that of its
# own weights, and timm's and random ones what timm gives the architecture, unless the recipe says it for all.
POOLING = ("global_pool", "fc_norm", "use_fc_norm", "dynamic_img_size")


def short_names(weights: Sequence[str]) -> dict[str, str]:
    """Short names by which a table tells weights apart: `random`, `timm`, a run's or a file's name, with folders in front where needed."""
    parts = {w: [w] if not is_path(w) else list(Path(w).absolute().parts[1:]) for w in weights}
    for w, names in parts.items():
        if names[-2:] == ["weights", "backbone"] or names[-2:] == ["weights", "model"]:
            parts[w] = names[:-2]
        elif Path(w).is_file():
            parts[w] = [*names[:-1], Path(w).stem]
    depth = 1
    while len({tuple(p[-depth:]) for p in parts.values()}) < len({tuple(p) for p in parts.values()}):
        depth += 1
    short: dict[str, str] = {}
    for w, names in parts.items():
        name = "/".join(names[-depth:]) if sum(p[-1] == names[-1] for p in parts.values()) > 1 else names[-1]
        short[name if name not in short else w] = w
    return short


def share_network(recipe: Judged, weights: dict[str, str]) -> list[str]:
    """Fill in, in place, what run folders and exported folders say of their network, for all weights alike; in words.

    Args:
        recipe: of all runs.
        weights: by their short names.

    Raises:
        UserError: if they are of different networks, or were made for different sizes of pictures and the recipe names none.
    """
    specs: dict[str, backbones.Spec] = {}
    for short, place in weights.items():
        if is_path(place) and (config := backbones.read_config(build.weights_path(place))):
            specs[short] = backbones.Spec.of(config)
    notes = _share_backbone(recipe, specs) if specs else []
    if recipe.data.image_size is None and not isinstance(recipe, DetectRecipe):  # which wants larger ones
        notes += _share_size(recipe, specs, weights)
    return notes


def _share_backbone(recipe: Judged, specs: dict[str, backbones.Spec]) -> list[str]:
    b, source = recipe.backbone, next(iter(specs))
    spec, notes = specs[source], []
    for short, other in specs.items():
        if b.name and other.name != b.name.split(".", 1)[0]:
            cure = f"leave that one out, or set backbone.name={other.name}"
            raise UserError(f"--weights: {short} was made as {other.name}, but the recipe's backbone.name is {b.name}; {cure}")
        for what, own, theirs in (
            ("name", spec.name, other.name), ("stem", spec.stem, other.stem), ("arguments", _shape(spec), _shape(other)),
        ):  # fmt: skip
            if own != theirs:
                raise UserError(
                    f"--weights: {source} and {short} are of different networks ({what} {own} and {theirs}); compare one at a time"
                )
    shared = _shape(spec)
    if new := {k: v for k, v in shared.items() if k not in b.args}:
        b.args = shared | b.args
        notes.append(f"backbone.args {new}: as {source} was made, for all weights")
    if pooled := [short for short, o in specs.items() if o.shape_args.keys() - shared.keys() - {"dynamic_img_size"}]:
        notes.append(f"{', '.join(pooled)}: the embedding is pooled as in the weights' own training")
    if not b.name:
        b.name = spec.name
        notes.append(f"backbone {b.name}: as {source} was made")
    if b.stem is None and spec.stem != "timm":
        b.stem = spec.stem
        notes.append(f"stem {b.stem}: as {source} was made, for all weights")
    return notes


def _share_size(recipe: Judged, specs: dict[str, backbones.Spec], weights: dict[str, str]) -> list[str]:
    """Rows that differ in their weights alone see pictures of one size. It is written down whatever it is: a comparison keeps it."""
    sizes = {short: spec.image_size for short, spec in specs.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{short} {size}" for short, size in sizes.items())
        raise UserError(f"data.image_size: weights were made for different sizes of pictures ({told}); set one for all")
    if sizes:
        short, recipe.data.image_size = next(iter(sizes.items()))
        return [f"image_size {recipe.data.image_size}: as {short} was made, for all weights"]
    if recipe.backbone.name is None:
        return []  # told where the backbone is made
    trained = sorted((w for w in weights.values() if w != "random"), key=lambda w: w != "timm")  # whose size is sure comes first
    recipe.data.image_size, why = size_of(trained[0] if trained else "random", recipe.backbone.name)
    return [f"image_size {recipe.data.image_size}: {why}, for all weights"]


def share_validation(recipe: Judged) -> list[str]:
    """Fill in, in place, by which seed a share of the pictures judges all runs: by each run's own, labels would come out of other pictures,
    and scores be of others."""
    data = recipe.data
    if not isinstance(data.val, float) or data.val_seed is not None:
        return []
    data.val_seed = 0
    return [f"data.val_seed 0: the share {data.val:g} of the pictures is set aside once, and judges all seeds"]


def with_its_size(raw: dict[str, Any]) -> dict[str, Any]:
    """A comparison's recipe from before its size of pictures was always written down: what no run folder told was this."""
    if raw["task"] == "classify" and raw["data"].get("image_size") is None:
        raw["data"]["image_size"] = SIZE
    return raw


def _shape(spec: backbones.Spec) -> dict[str, Any]:
    return {k: v for k, v in spec.shape_args.items() if k not in POOLING}
