"""A real MLflow store, as in the tests of flows."""

from tests.flows.conftest import home

__all__ = ["home"]
