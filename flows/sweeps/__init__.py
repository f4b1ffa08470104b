"""Sweeps: the cells of a grid over options and seeds, and what their figures are together."""
