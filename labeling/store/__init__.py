"""The append-only store of annotations and its synchronisation with the server."""
