"""Processes of one training stage: collectives, threads, and the end of a process whose parent died."""
