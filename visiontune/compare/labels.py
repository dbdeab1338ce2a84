"""How many labels a run has, and what a recipe becomes with fewer than it was written for."""

import math
import re
from dataclasses import dataclass
from typing import Any

from visiontune.errors import UserError, counted
from visiontune.recipe import ClassifyRecipe, Judged
from visiontune.recipe.schema import repeats_of

# The shortest schedule that BiT-HyperRule gives, to tasks of less than 20,000 pictures (Kolesnikov et al. 2020, arXiv 1912.11370). The
# field gives fewer labels more epochs, though not as many as would make the steps equal: SimCLRv2 60 to 1 % of ImageNet and 30 to 10 %
# and to all (Chen et al. 2020, arXiv 2006.10029).
MIN_STEPS = 500
# Steps in a row on crops of one batch, where the batch is all there is: its pictures are decoded once and validated once for them.
MOST_REPEATS = 16
# Validations of a run whose epochs were stretched.
VALIDATIONS = 12


@dataclass(frozen=True)
class Labels:
    """How many labels: a share of each class, or a number of pictures of each.

    >>> Labels.of("1%"), Labels.of("10"), Labels.of("100 %").name
    (Labels(fraction=0.01, per_class=None), Labels(fraction=None, per_class=10), '100 %')
    """

    fraction: float | None = None
    per_class: int | None = None

    @classmethod
    def of(cls, text: str) -> "Labels":
        """Raises UserError."""
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text):
            if 0 < float(match[1]) <= 100:
                return cls(fraction=float(match[1]) / 100)
        elif text.isdigit() and int(text):
            return cls(per_class=int(text))
        raise UserError(
            f"--labels: got {text!r}; expected a share of the labels, as 1% or 100%, or a number of pictures of each class, as 10"
        )

    @property
    def name(self) -> str:
        return f"{100 * self.fraction:g} %" if self.fraction else f"{self.per_class} a class"

    @property
    def keys(self) -> dict[str, Any]:
        """Of a recipe's `data`."""
        fraction = self.fraction if self.fraction != 1 else None
        return {"labels_fraction": fraction, "labels_per_class": self.per_class}


def fit_to_labels(recipe: Judged, pictures: int, full: int, min_steps: int, *, derived: int | None = None) -> tuple[Judged, str]:
    """The recipe for fewer labels than it was written for, and what was changed, in words.

    A batch holds no more than there is. Epochs grow until there are `min_steps` optimiser steps, or as many as with all labels if
    those are fewer; the warm-up grows with them.

    Args:
        recipe: as it was written.
        pictures: labelled ones of this run.
        full: of one with all labels.
        min_steps: 0 leaves epochs alone.
        derived: epochs where the recipe leaves them open.
    """
    data, epochs = recipe.data, recipe.epochs or derived
    repeats = own_repeats = repeats_of(recipe)
    batch = min(data.batch_size, pictures)
    changes, words = {}, []
    if batch < data.batch_size:  # left alone where it is not: what a recipe leaves open is then found as in any run
        changes["batch_size"] = batch
        words.append(f"batches of {batch}, there are no more pictures")
    found = recipe.model_copy(update={"data": data.model_copy(update=changes)})
    if epochs is None:
        return found, "; ".join(words)
    wanted = min(min_steps, full // min(data.batch_size, full) * repeats * epochs)
    steps_per_epoch = pictures // batch * repeats
    if steps_per_epoch * epochs >= wanted:
        return found, "; ".join(words)
    if batch == pictures and isinstance(recipe, ClassifyRecipe):  # an epoch is one batch: as many in a row are the same as repeats of it
        repeats = max(own_repeats, min(MOST_REPEATS, math.ceil(wanted / epochs)))
        steps_per_epoch = repeats
    stretched = math.ceil(wanted / steps_per_epoch)
    every = max(1, stretched // VALIDATIONS)
    stretched = math.ceil(stretched / every) * every  # the last epoch is validated
    found.epochs = stretched
    if repeats > own_repeats:
        found.data = found.data.model_copy(update={"repeats": repeats})
    found.trainer = found.trainer.model_copy(update={"check_val_every_n_epoch": every})
    if found.optim.warmup_epochs is not None:
        found.optim = found.optim.model_copy(update={"warmup_epochs": found.optim.warmup_epochs * stretched / epochs})
    if (patience := getattr(found, "patience", None)) is not None:  # epochs, too; in whole spans between validations
        found = found.model_copy(update={"patience": every * math.ceil(patience * stretched / epochs / every)})
    was = f"{counted(repeats, 'step')} instead of {epochs} of {own_repeats}" if repeats > own_repeats else f"instead of {epochs}"
    of = f"{counted(stretched, 'epoch')} of {was}" if repeats > own_repeats else f"{counted(stretched, 'epoch')} {was}"
    why = f"BiT-HyperRule's shortest schedule has {MIN_STEPS}" if wanted == min_steps else "as many as with all labels"
    words.append(f"{of}, for {steps_per_epoch * stretched:,} optimiser steps ({why}; --min-steps {min_steps})")
    return found, "; ".join(words)
