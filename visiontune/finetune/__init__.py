"""LightningModules that put a head on a backbone and teach it from labels."""
