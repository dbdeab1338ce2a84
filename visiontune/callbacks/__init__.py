"""What watches a run: checkpoints, progress, metrics, pictures, probes."""
