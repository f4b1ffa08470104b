"""The reward model: loss, training, ensembles, held-out accuracy."""
