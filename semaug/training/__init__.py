"""The training loop, the contract of an objective, recipes, checkpoints and records."""
