"""MLflow as the cache and the record of every stage."""
