"""The options of every stage: frozen pydantic models."""
