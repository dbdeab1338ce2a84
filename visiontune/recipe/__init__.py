"""Every setting once: its type, default, unit and meaning; loading, overriding, checking, saving. Imports no torch."""

from visiontune.recipe.benchmark import BenchmarkRecipe
from visiontune.recipe.load import RecipeError, load_recipe, parse_recipe
from visiontune.recipe.schema import ClassifyRecipe, DetectRecipe, Judged, PretrainRecipe, Recipe, Validated
from visiontune.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "BenchmarkRecipe", "ClassifyRecipe", "DetectRecipe", "Judged", "PretrainRecipe", "Recipe", "RecipeError", "Validated", "find_recipe",
    "load_recipe", "parse_recipe", "shipped_recipes",
]  # fmt: skip
