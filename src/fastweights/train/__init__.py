"""Training: configurations and recipes, tasks that give batches, the loop, checkpoints and exact resuming."""
