"""A real MLflow store, as the tests of flows have it."""

from tests.flows.conftest import home

__all__ = ["home"]
