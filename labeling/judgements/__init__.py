"""Annotations of Label Studio as judgements, and judgements as comparisons."""
