"""The service from outside: a client with the same verbs, and workers that need nothing but a token."""
