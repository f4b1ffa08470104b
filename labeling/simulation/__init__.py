"""The town's simulated annotators."""
