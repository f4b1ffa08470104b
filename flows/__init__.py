"""Prefect flows: the pipeline, its recipes, the local stack, and the command line `rlhf`."""

from flows.prefect_configuration import read_no_files

read_no_files()  # here, because it comes before any import of Prefect, in every process
