"""Settings to objects: the only room that knows both.

`derive` fills in every number that the recipe leaves open, with its reason; the rest turns the filled-in recipe into pictures, a
module and a Trainer.
"""

from dataclasses import dataclass

from visiontune.build.detecting import check_sizes
from visiontune.build.memory import free_memory, is_out_of_memory, keep_freed_memory, with_smaller_batches
from visiontune.build.modules import compile_blocks, make_module, weights_path
from visiontune.build.numbers import auto_precision, derive
from visiontune.build.pictures import Tables, clean_loader, find_pictures, make_data, picture_size, reading_of, some_pictures, views_of
from visiontune.build.trainer import (
    check_shares,
    check_split,
    check_validation,
    make_trainer,
    processes_here,
    sync_batch_norms,
    tensorboard,
)
from visiontune.errors import UserError
from visiontune.module import Module
from visiontune.recipe import DetectRecipe, Recipe

__all__ = [
    "Prepared", "Tables", "auto_precision", "check_split", "check_validation", "clean_loader", "compile_blocks", "derive",
    "find_pictures", "free_memory", "is_out_of_memory", "keep_freed_memory", "make_data", "make_module", "make_trainer", "picture_size",
    "prepare", "processes_here", "reading_of", "rehearse", "some_pictures", "sync_batch_norms", "tensorboard", "views_of", "weights_path",
    "with_smaller_batches",
]  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A run up to its Trainer, with nothing written yet.

    Attributes:
        recipe: with every number filled in.
        tables: its pictures.
        module: with its weights.
        notes: what was found and decided, in words.
    """

    recipe: Recipe
    tables: Tables
    module: Module
    notes: list[str]


def prepare(recipe: Recipe, *, resumed: bool = False, stands_in: bool = False) -> Prepared:
    """Pictures, numbers and module of a run: whatever can be wrong with a recipe is found here.

    Args:
        recipe: as it was given.
        resumed: its weights will come from its own checkpoint.
        stands_in: its random weights stand for ones that are still to be made: its numbers are those for pretrained ones.

    Raises:
        UserError: in one sentence.
    """
    tables = find_pictures(recipe)
    processes = processes_here(recipe)
    recipe, derived = derive(recipe, tables, processes, stands_in=stands_in)
    check_split(recipe, processes * recipe.trainer.num_nodes)
    check_validation(recipe)
    check_shares(tables.val, processes * recipe.trainer.num_nodes)
    module, loaded = make_module(recipe, tables, resumed=resumed)
    if isinstance(recipe, DetectRecipe):
        check_sizes(module, recipe, picture_size(recipe))
    else:
        module.check_views(size for size in views_of(recipe)[0].sizes if size is not None)
    return Prepared(recipe, tables.absolute(), module, [*tables.notes, *derived, *loaded])


def rehearse(stages: dict[str, Recipe]) -> dict[str, Prepared]:
    """Prepare every stage before the first one trains; a backbone that an earlier stage will make stands in with random weights."""
    prepared: dict[str, Prepared] = {}
    for name, recipe in stages.items():
        recipe = recipe.model_copy(deep=True)
        backbone = recipe.backbone
        try:
            if later := backbone.weights.startswith("stage:"):
                source = prepared[backbone.weights.removeprefix("stage:")].module.spec
                if backbone.stem not in (None, source.stem) and not backbone.partial:
                    made = f"{backbone.weights} is made with the stem {source.stem!r}"
                    raise UserError(f"backbone.stem: got {backbone.stem!r}, but {made}; leave it out here")
                backbone.weights, backbone.stem = "random", backbone.stem or source.stem
                if recipe.data.image_size is None and not isinstance(recipe, DetectRecipe):  # which takes larger ones than its weights
                    recipe.data.image_size = source.image_size
                if backbone.name is None or backbone.name.split(".", 1)[0] == source.name:  # as `derive` has it
                    backbone.name, backbone.args = backbone.name or source.name, source.shape_args | backbone.args
            prepared[name] = prepare(recipe, stands_in=later)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}" if name else str(error)) from error
    return prepared
