"""The manifest of a round, its report, lineage and promotion."""
