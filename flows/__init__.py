"""Prefect flows: the pipeline, its recipes, the local stack, and the command line `rlhf`."""
