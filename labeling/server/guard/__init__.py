"""Files that run inside Label Studio, in its environment: its settings with our guard."""
