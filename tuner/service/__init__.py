"""The service: ask and tell over HTTP, the dashboard behind the same login."""
