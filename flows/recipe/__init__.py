"""Recipes: schema, overrides, validation messages, and the stages they ask for."""
