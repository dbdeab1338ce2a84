"""What types cannot say of a recipe, and looks at all pictures and boxes before any training."""

from visiontune.checks.boxes import check_annotations, check_box_data
from visiontune.checks.pictures import READ_KEYS, TABLE_KEYS, check_pictures, data_of
from visiontune.checks.recipes import CHECKS

__all__ = ["CHECKS", "READ_KEYS", "TABLE_KEYS", "check_annotations", "check_box_data", "check_pictures", "data_of"]
