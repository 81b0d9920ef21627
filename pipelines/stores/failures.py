"""What the errors of stores mean: one row of a table for each kind, with its remedy and whether waiting helps."""

from __future__ import annotations

import re
from dataclasses import dataclass


class StoreError(OSError):
    """A store refused something; the message is one line with place, cause and remedy."""


class StoreUnavailableError(StoreError, ConnectionError):
    """A store did not answer for longer than it is waited for; the same command may be run again."""


@dataclass(frozen=True)
class Failure:
    """A kind of failure."""

    pattern: str
    """Found in the text of Arrow's error, in any case of letters."""
    what: str
    remedy: str
    passes: bool
    """Whether it may end without the command being started again."""
    most_attempts: int | None = None
    """After so many it does not pass; None for as long as there is patience."""


FAILURES = (
    Failure(
        r"checksums? (?:mismatch|does not match)",
        "what arrives has not the checksum that the store states",
        "the object is damaged: restore it, or build it again with --restart",
        passes=True,
        most_attempts=4,
    ),
    Failure(
        r"parsing the HTTP request|incomplete.?body|bad.?digest",
        "the store did not get a request as it was sent",
        "check the network and the proxies between",
        passes=True,
        most_attempts=4,
    ),
    Failure(
        # Answers to HEAD have no body, so a request that was cut and expired credentials look alike.
        r"HTTP status 400\) during \w+ operation: no response body",
        "the store refuses a request and gives no reason (400)",
        "check that the credentials have not expired, and the network and the proxies between",
        passes=True,
        most_attempts=4,
    ),
    Failure(
        r"expired.?token|token.{0,20}expired|credentials? .{0,20}expired",
        "the credentials have expired",
        "renew them where this process reads them (AWS_SHARED_CREDENTIALS_FILE, the machine's role)",
        passes=True,
    ),
    Failure(
        r"time.?too.?skewed|difference between the request time",
        "the clock of this machine differs from the store's by more than the store accepts",
        "set this machine's clock (NTP)",
        passes=False,
    ),
    Failure(
        r"no.?such.?bucket|bucket does not exist|container.?not.?found|container does not exist",
        "there is no such bucket",
        "create it, or correct the address and AWS_ENDPOINT_URL",
        passes=False,
    ),
    Failure(
        r"authentication.?failed|signature.?does.?not.?match|invalid.?access.?key|invalid.?client.?token|unauthenticated"
        r"|status 401",
        "the store does not accept the credentials",
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or those of this store",
        passes=False,
    ),
    Failure(
        r"authorization.{0,20}(?:failure|mismatch)|access.?denied|forbidden|permission.?denied|status 403",
        "the store denies access",
        "check the credentials, or grant them reading, writing, listing and deleting here",
        passes=False,
    ),
    Failure(
        r"resolve host|name or service not known|name resolution",
        "the store's name cannot be resolved",
        "check the network, the address and AWS_ENDPOINT_URL",
        passes=True,
    ),
    Failure(
        r"slow.?down|service.?unavailable|throttl|too many requests|status (?:429|503)|\b503\b",
        "the store asks to slow down or is out of service (503)",
        "check the store's status",
        passes=True,
    ),
    Failure(
        r"internal.?(?:failure|error)|status 50[0-9]|bad gateway|gateway time",
        "the store fails internally (5xx)",
        "check the store's status",
        passes=True,
    ),
    Failure(
        r"request.?timeout|timed? ?out|timeout was reached|deadline exceeded",
        "the store does not answer in time",
        "check the network and the store's status",
        passes=True,
    ),
    Failure(
        r"network_connection|curlcode|could not connect|fail to get a new connection"
        r"|connection (?:was |is )?(?:refused|reset|closed|aborted)"
        r"|transferred a partial file|broken pipe|unexpected end of stream",
        "the connection to the store fails",
        "check the network, AWS_ENDPOINT_URL and the store's status",
        passes=True,
    ),
)
"""The first row that matches counts."""

_DETAIL = re.compile(r"AWS Error (?P<name>\w+)(?: \(HTTP status (?P<status>\d+)\))? during (?P<operation>\w+)")


def failure_of(error: OSError) -> Failure | None:
    """The kind of a store's error; None for one that is not the store's, such as a missing file."""
    if error.errno is not None:
        return None
    text = str(error)
    return next((failure for failure in FAILURES if re.search(failure.pattern, text, re.IGNORECASE)), None)


def detail_of(error: OSError) -> str:
    """Name and operation of an error for its line: `ACCESS_DENIED, HeadObject`."""
    if (found := _DETAIL.search(str(error))) is None:
        return str(error).partition("\n")[0][:200]
    status = f" {found['status']}" if found["status"] else ""
    return f"{found['name']}{status}, {found['operation']}"
