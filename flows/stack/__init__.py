"""The local servers: Prefect, MLflow, Label Studio, PostgreSQL."""
