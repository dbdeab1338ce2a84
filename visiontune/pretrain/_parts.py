"""What several methods share: the views of a batch, the cells of a backbone, options that follow from the number of pictures.

B pictures, C channels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from visiontune.errors import UserError
from visiontune.module import Module


def two_views(module: Module, batch: Any) -> list[Tensor]:
    """The two normalised views `(B, C, H, W)` of a batch.

    Raises:
        UserError: if there are more or fewer.
    """
    views = module.views(batch)
    if len(views) != 2:
        raise UserError(f"{type(module).__name__}: expected batches of two views [view0, view1] but got {len(views)}")
    return views


def global_and_local(module: Module, batch: Any) -> list[Tensor]:
    """The normalised views of a batch: two of the whole picture, `(B, C, H, W)`, then any number of small ones.

    Raises:
        UserError: if there are not two.
    """
    views = module.views(batch)
    if len(views) < 2:
        raise UserError(
            f"{type(module).__name__}: expected batches of two global views, and any number of local ones, but got {len(views)}"
        )
    return views


def grid_of_cells(module: Module, method: str) -> tuple[tuple[int, int], int]:
    """Rows and columns of the backbone's last features, of which a method hides some, and their width.

    Raises:
        UserError: if there is none, or a single one.
    """
    face = module.face
    if face.grid is None or face.token_width is None:
        raise UserError(
            f"backbone.name: got {module.spec.name}, whose last features are no grid of positions, which {method} hides; use method: dino"
        )
    if face.grid[0] * face.grid[1] < 4:
        H, W = module.picture_size
        raise UserError(
            f"data.image_size: got {H}x{W}, of which {module.spec.name} makes {face.grid[0]}x{face.grid[1]} cells, too few to hide some; "
            "take larger pictures, smaller patches or strides, or method: dino"
        )
    return face.grid, face.token_width


def unset(value: Any, by_pictures: Sequence[tuple[int | None, Any]]) -> Any:
    """A method's option, or where it is None, what its paper takes for a large folder: the last of `(most pictures, value)`."""
    return by_pictures[-1][1] if value is None else value
