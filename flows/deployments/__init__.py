"""Prefect deployments, and the watcher of runs that wait or died."""
