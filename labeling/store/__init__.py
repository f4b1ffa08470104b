"""Every version of every annotation, kept on our side, and its sync with the server."""
