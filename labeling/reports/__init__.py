"""The status page, the data card, and figures of a collection."""
