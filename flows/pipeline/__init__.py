"""The pipeline as a Prefect flow, its plan, and its cost."""
