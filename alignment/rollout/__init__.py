"""Engines that sample the responses of a rollout: in this process, or a server of its own."""
