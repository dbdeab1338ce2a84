"""What a run leaves for people: figures, a page, a model card."""
