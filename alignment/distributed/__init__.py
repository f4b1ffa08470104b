"""Processes of a training stage: collectives, threads, devices, and the end of processes whose parent died."""
