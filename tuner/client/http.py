"""Calls of the service: tried again while it does not answer, and answered once however often they are tried.

Every call that changes something carries an id of its own (`Idempotency-Key`), the same for each try. What the service
refuses becomes the error that the same mistake is in this process (`tuner.errors`), in one line that never holds the
token. Every call has a name (`X-Request-ID`), the same for each try, under which both sides log it.
"""

from __future__ import annotations

import datetime
import email.utils
import ipaddress
import json
import logging
import ssl
import time
import uuid
from collections.abc import Mapping
from typing import Any, Self

import httpx
import tenacity

from tuner.errors import (
    AccessDeniedError,
    ConflictError,
    DefinitionError,
    LeaseLostError,
    NotFoundError,
    ServiceUnavailableError,
    TunerError,
)

__all__ = ["PATIENCE", "Transport"]

PATIENCE = 120.0
"""For how many seconds a call is tried again while the service does not answer."""

TIMEOUT = 30.0
"""For how many seconds an answer may keep a call waiting before it is tried again."""

CONNECT_SECONDS = 5.0

LONGEST_WAIT = 5.0
"""Seconds between two tries, at most, unless the service itself asks for more."""

UNAVAILABLE = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which another try may go through."""

LONGEST_TEXT = 1000

_log = logging.getLogger(__name__)

_BY_SLUG: dict[str, type[TunerError]] = {
    "lease_lost": LeaseLostError,
    "already_requested": LeaseLostError,  # the request's trial has ended or went to another
    "conflict": ConflictError,
    "not_found": NotFoundError,
    "invalid": DefinitionError,
}

_BY_STATUS: dict[int, type[TunerError]] = {
    400: DefinitionError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: DefinitionError,
    415: DefinitionError,
    422: DefinitionError,
}


class _NotNowError(ServiceUnavailableError):
    """A try that another may make good. `wait` is how many seconds the service asks to wait before."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Transport:
    """The way to a service. Threads may share it; close it at the end, for instance with `with`.

    Args:
        url: of the service: `https://HOST[:PORT][/PREFIX]`; plain `http://` only on this machine.
        token: what the service gave for it.
        patience: for how many seconds a call is tried again while the service does not answer.
        timeout: for how many seconds one try waits for the answer.
        allow_http: send the token in the clear to another machine: for networks that are one's own.
        ca_file: certificates to trust, in PEM, instead of the system's.
        transport: carries out the requests, in tests.

    Raises:
        DefinitionError: the URL is none, or would send the token in the clear; or the token or `ca_file` is none.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = PATIENCE,
        timeout: float = TIMEOUT,
        allow_http: bool = False,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, is_local = _checked_url(url, allow_http)
        self.patience = patience
        self._token = _checked_token(token)
        self._arguments = {"timeout": timeout, "allow_http": allow_http, "ca_file": ca_file}
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"},
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),  # as many as there are threads
            trust_env=not is_local,  # a proxy of the environment is not the way to this machine
            verify=_certificates(ca_file),
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self._token, {"patience": self.patience, **self._arguments})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **query: Any) -> Any:
        """What is at `path`, from JSON. Errors as in `post`."""
        return _parsed(self.send("GET", path, query=query))

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str = "",
        patience: float | None = None,
    ) -> Any:
        """Do what is at `path`, with a JSON body; the answer, from JSON.

        Args:
            path: from the service's root, quoted.
            body: plain values. Infinities and NaN are sent as the strings "inf", "-inf" and "nan" by those who may.
            key: the id of the call, if it is to be the same as an earlier one's.
            patience: instead of the transport's.

        Raises:
            AccessDeniedError: the token is unknown, or may not do this.
            NotFoundError: there is nothing of this name.
            ConflictError: it contradicts what is stored.
            LeaseLostError: the trial is another's now.
            DefinitionError: the body breaks a rule.
            ServiceUnavailableError: there was no answer for as long as the patience lasts.
            TunerError: the service failed, or what answers is none.
        """
        try:
            content = json.dumps(body if body is not None else {}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"only plain JSON can be sent to the service: {error}") from None
        media_type = "application/json"
        response = self.send("POST", path, content=content, media_type=media_type, key=key, patience=patience)
        return _parsed(response)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        media_type: str = "",
        key: str = "",
        patience: float | None = None,
    ) -> httpx.Response:
        """One call, tried again while the service does not answer; errors as in `post`."""
        name, began = uuid.uuid4().hex, time.perf_counter()
        headers = {"X-Request-ID": name}
        if method != "GET":
            headers["Idempotency-Key"] = key or name
        if media_type:
            headers["Content-Type"] = media_type
        request = {"params": query or None, "content": content, "headers": headers}
        result = "no answer"
        try:
            response = self._patiently(method, path, request, self.patience if patience is None else patience)
            result = str(response.status_code)
            return response
        except TunerError as error:
            result = str(error)
            raise
        finally:
            took = round(1000 * (time.perf_counter() - began), 1)
            fields = {
                "request_id": name,
                "method": method,
                "path": path,
                "result": result,
                "milliseconds": took,
            }
            _log.info("call", extra={"fields": fields})

    def _patiently(
        self, method: str, path: str, request: Mapping[str, Any], patience: float
    ) -> httpx.Response:
        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_NotNowError),
            wait=_wait,
            stop=tenacity.stop_before_delay(patience),
        )
        try:
            return trying(self._try, method, path, request)
        except tenacity.RetryError as failed:
            error = failed.last_attempt.exception()
            tried = f" (tried again for {patience:.0f} s)" if patience else ""
            raise ServiceUnavailableError(f"{error}{tried}") from None

    def _try(self, method: str, path: str, request: Mapping[str, Any]) -> httpx.Response:
        try:
            response = self._http.request(method, f"{self.url}{path}", **request)
        except httpx.TimeoutException:
            raise _NotNowError(f"{self.url} does not answer in time") from None
        except httpx.TransportError as error:
            raise _NotNowError(f"{self.url} cannot be reached: {self._line(str(error))}") from None
        except httpx.HTTPError as error:
            raise TunerError(f"{self.url} gave no usable answer: {self._line(str(error))}") from None
        if response.is_success:
            return response
        raise self._error(response)

    def _error(self, response: httpx.Response) -> TunerError:
        """What the service's refusal is in this process."""
        status = response.status_code
        if response.is_redirect:
            where = self._line(response.headers.get("Location", "nowhere"))
            return TunerError(f"{self.url} sends on to {where}; give the URL of the service itself")
        problem = _problem(response)
        slug = str(problem.get("type", "")).removeprefix("urn:tuner:")
        text = self._line(_text(problem) or f"{self.url} answered {status} {response.reason_phrase}")
        if status in UNAVAILABLE:
            return _NotNowError(text, _retry_after(response))
        kind = _BY_SLUG.get(slug) or _BY_STATUS.get(status, TunerError)
        if status >= 500 and (request_id := problem.get("request_id")):
            text = f"{text} (request {request_id})"
        return kind(text)

    def _line(self, text: str) -> str:
        """A text of the service's as one line of ours, of bounded length, without the token whatever it says."""
        line = " ".join(text.split()).replace(self._token, "…")
        return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]} …"


def _reopen(url: str, token: str, arguments: Mapping[str, Any]) -> Transport:
    return Transport(url, token, **arguments)


def _wait(state: tenacity.RetryCallState) -> float:
    """Ever longer, and at random, so that the workers of a service that comes back do not come all at once."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _NotNowError) else 0.0
    return asked + tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT)(state)


def _checked_url(url: str, allow_http: bool) -> tuple[str, bool]:
    """The URL without a slash at its end, and whether it is on this machine."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise DefinitionError("the service's URL is https://HOST[:PORT]; got none") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise DefinitionError(f"the service's URL is https://HOST[:PORT]; got {url!r}")
    if parts.userinfo or parts.query or parts.fragment:
        raise DefinitionError(
            f"the URL of {parts.host} holds more than scheme, host, port and path; leave it out"
        )
    is_local = _is_loopback(parts.host)
    if parts.scheme == "http" and not is_local and not allow_http:
        raise DefinitionError(
            f"http://{parts.host} would send the token in the clear: use https://, or, in a network of your own, "
            "--allow-http (in Python allow_http=True)"
        )
    return str(parts).rstrip("/"), is_local


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_token(token: str) -> str:
    if not isinstance(token, str):  # as from a variable that is not set
        raise DefinitionError(f"a token is text; got {token!r}")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise DefinitionError("a token is a line of printable characters without spaces; this is none")
    return token


def _certificates(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise DefinitionError(f"{ca_file} holds no certificates in PEM: {error}") from None


def _parsed(response: httpx.Response) -> Any:
    if not response.content:
        return {}
    try:
        return response.json()
    except ValueError:
        where = f"{response.url.scheme}://{response.url.host}"
        raise TunerError(f"{where} answered with no JSON: is this the service?") from None


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    """The problem document (RFC 9457) of a refusal; empty where the answer is none, as a proxy's."""
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(problem: Mapping[str, Any]) -> str:
    """What it says for people; nothing where that is no text, as JSON would tell them little."""
    texts = (problem.get("detail"), problem.get("title"))
    return next((text for text in texts if isinstance(text, str) and text), "")


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait, of a `Retry-After` in seconds or as a date; 0 where there is none."""
    given = response.headers.get("Retry-After", "")
    if given.isascii() and given.isdecimal():
        return float(given)
    try:
        when = email.utils.parsedate_to_datetime(given)
        return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
