"""Self-supervised pretraining: one method, one file. Each is a LightningModule that takes tensors and flat keyword arguments."""
