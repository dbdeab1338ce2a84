"""What fine-tuning takes where its recipe leaves it open: a small table, by what is tuned, from which weights, and how many pictures.

Sources: BiT-HyperRule: Kolesnikov et al. 2020 (arXiv 1912.11370), section 3.3: few pictures few steps, mixup above 20,000 pictures only.
MAE: He et al. 2022 (arXiv 2111.06377), appendix A.1: layer decay and label smoothing for transformers. What is ours says so.
"""

import timm
import torch

from visiontune import backbones
from visiontune.errors import UserError, counted
from visiontune.recipe import ClassifyRecipe, DetectRecipe

# Pictures that a run sees. BiT takes 500 steps of 512 for fewer than 20,000 pictures, which is 256,000. What is here is ours: of 3,000
# pictures, 16,000 seen by the whole of pretrained weights brought nearly what 64,000 did (benchmarks/tune_budget.csv), and a CPU is
# done in minutes (benchmarks/tune_defaults.csv). A classifier alone goes no way back, and may see twice as many in that time. Random
# weights have all to learn.
SEEN = {
    "gpu": {"the whole of pretrained weights": 64_000, "a classifier alone": 64_000, "random weights": 320_000},
    "cpu": {"the whole of pretrained weights": 16_000, "a classifier alone": 32_000, "random weights": 80_000},
}
FEWEST, MOST = {"gpu": 10, "cpu": 4}, 200  # epochs
SMOOTHED_FROM = 10  # epochs; five were better without it (benchmarks/tune_budget.csv)
BIT_SMALL = 20_000  # pictures, below which BiT-HyperRule does not mix


def fill_tuning(recipe: ClassifyRecipe, pictures: int, *, fresh: bool, several: bool = False, on_cpu: bool = False) -> list[str]:
    """Fill in, in place, epochs and how to train them; in words what was decided and why.

    Args:
        recipe: with the backbone that its weights tell.
        pictures: to train on.
        fresh: whether the weights are random.
        several: whether they may have several labels.
        on_cpu: whether a CPU trains.
    """
    notes: list[str] = []
    o, head = recipe.optim, recipe.head
    alone = recipe.tune == "head"

    if recipe.epochs is None:
        where, place = ("cpu", "on a CPU") if on_cpu else ("gpu", "on a GPU")
        what = "a classifier alone" if alone else "random weights" if fresh else "the whole of pretrained weights"
        seen, fewest = SEEN[where][what], FEWEST[where]
        recipe.epochs = epochs_for_labels(pictures, seen, fewest)
        there = epochs_for_labels(pictures, SEEN["gpu"][what])
        longer = f"; a GPU would make {there}, which is a little better" if there > recipe.epochs else ""
        notes.append(
            f"epochs {recipe.epochs}: about {seen:,} pictures seen {place} by {what} (after BiT-HyperRule, arXiv 1912.11370; the number "
            f"is ours), of {counted(pictures, 'picture', ',')}; {fewest} to {MOST}{longer}"
        )
    if alone:
        return notes
    if o.layer_decay is None and not fresh and recipe.tune in ("full", "head_then_full") and attends(recipe):
        o.layer_decay = 0.75
        notes.append("layer decay 0.75: a transformer from pretrained weights (MAE, arXiv 2111.06377, table 9)")
        if o.lr is None and o.name in (None, "adamw"):
            o.lr = 5e-4
            notes.append(
                "learning rate 0.0005: likewise, there for a batch of 256; not scaled here, for small batches are many steps (ours)"
            )
    # Of several labels each is a yes or no of its own. The sources smooth one label over the classes; a no that becomes 0.05 for each of
    # them would ask for a score far above how rarely most labels are there.
    if "label_smoothing" not in head.model_fields_set and recipe.epochs >= SMOOTHED_FROM and not several:
        head.label_smoothing = 0.1
        notes.append(f"label smoothing 0.1: {SMOOTHED_FROM} passes or more, as timm's and MAE's fine-tuning (arXiv 2111.06377, table 9)")
    if "mixup" not in head.model_fields_set and pictures > BIT_SMALL:
        head.mixup = 0.1
        notes.append(f"mixup 0.1: more than {BIT_SMALL:,} pictures (BiT-HyperRule, arXiv 1912.11370)")
    return notes


def epochs_for_labels(pictures: int, seen: int, fewest: int = FEWEST["gpu"]) -> int:
    """Passes such that about as many pictures are seen however many there are.

    >>> [epochs_for_labels(n, 64_000) for n in (100, 1_000, 3_000, 50_000)]
    [200, 64, 21, 10]
    """
    return min(MOST, max(fewest, round(seen / pictures)))


def divided(batch: int, pictures: int, parts: int) -> int:
    """The largest batch of at most so many pictures that devices and accumulated batches share evenly, at least one each.

    >>> divided(64, 50, 4), divided(2, 50, 4)
    (48, 4)

    Raises:
        UserError: if there are fewer pictures than these parts.
    """
    if pictures < parts:
        raise UserError(f"data.train: {counted(pictures, 'picture')} for {parts} devices and accumulated batches; take fewer of them")
    return max(1, min(batch, pictures) // parts) * parts


def attends(recipe: ClassifyRecipe | DetectRecipe) -> bool:
    """Whether the backbone is a transformer: tried without memory for its weights."""
    b = recipe.backbone
    assert b.name is not None, "its weights have told it by now"
    try:
        with torch.device("meta"):
            return backbones.has_attention(timm.create_model(b.name, num_classes=0, **b.args))
    except Exception:  # arguments that timm refuses are told where the backbone is made
        return False
