"""Label Studio annotations parsed into judgements, and judgements converted to comparisons."""
