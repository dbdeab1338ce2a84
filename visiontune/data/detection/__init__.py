"""Pictures with boxes: annotations in three formats become one table, which is looked over, and batches of `Boxes` come out of it."""
