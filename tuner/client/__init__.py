"""The service from outside: a client with the same verbs, and workers that need nothing but a token."""

from tuner.client.client import Client, RemoteStudy
from tuner.client.documents import RemoteTrial, StudyStatus

__all__ = ["Client", "RemoteStudy", "RemoteTrial", "StudyStatus"]
