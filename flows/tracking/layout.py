"""Paths of a stage's files among the artifacts of its MLflow run."""

OUTPUT = "output"  # the stage's output, without the files of a registered model
SERVED = "served"  # the registered model, in the form that MLflow serves
MODEL = "model"  # a stage's Hugging Face directory, in the output
