"""Devices and precision; processes of a stage: collectives, sharded models, threads, and the end of orphans."""
