"""The Label Studio server: its process, HTTP client, accounts and webhooks."""
