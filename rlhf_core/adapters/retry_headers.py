"""How long a busy server asks to be left alone: the headers of a wait, of a limit and its reset."""

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

BUSY = 429
"""The status of too many requests."""
_PASSED_ON = "llm_provider-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LIMIT = re.compile(r'("(?:[^"\\]|\\.)*"|[^\s",;]+)((?:\s*;\s*\w+(?:=(?:"[^"]*"|[^",;]*))?)*)')
_PARAMETER = re.compile(r";\s*(\w+)=(\d+(?:\.\d+)?)(?![\w.])")
_OLD_LIMIT = re.compile(r"\b(limit|remaining|reset)=(\d+(?:\.\d+)?)")
_EPOCH = 1e9
"""A reset of more seconds than this is a point in time and no wait; a thousand times it, in ms."""


def asked_to_wait(answer: httpx.Response) -> float:
    """Return the seconds that a busy server names.

    ``retry-after-ms``, else ``Retry-After`` in seconds or as a date (RFC 9110, section 10.2.3),
    else, of one that is too busy, when its limit is reset: ``x-ratelimit-reset...`` as seconds, a
    duration like ``1m30s`` or a point in time, ``ratelimit-reset`` in seconds, or ``RateLimit`` and
    ``RateLimit-Policy``. 0 where nothing readable is named. Behind litellm the words of whoever is
    asked by it have a name of their own, ``llm_provider-retry-after``.
    """
    passed_on = {name.removeprefix(_PASSED_ON): value for name, value in answer.headers.items()}
    headers = httpx.Headers({**passed_on, **answer.headers})
    exact = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", exact):
        return float(exact) / 1_000
    asked = headers.get("retry-after", "")
    named = _seconds(asked)
    named = _date(asked) if named is None else named
    if named is not None or answer.status_code != BUSY:
        return named or 0.0
    resets = {
        name: wait
        for name, text in headers.items()
        if "ratelimit-reset" in name and (wait := _seconds(text)) is not None
    }
    used_up = [
        wait
        for name, wait in resets.items()
        if headers.get(name.replace("reset", "remaining")) == "0"
    ]
    return max(used_up or resets.values() or _structured_resets(headers), default=0.0)


def _structured_resets(headers: httpx.Headers) -> list[float]:
    """Return the seconds until each limit that is used up is renewed; of all, where none says so.

    ``RateLimit: "hour";r=0;t=30`` has what remains and the seconds until more does, and
    ``RateLimit-Policy: "hour";q=100;w=3600`` the window that a limit without ``t`` is renewed after
    at the latest (IETF draft-ietf-httpapi-ratelimit-headers-10); until draft 07 it was one limit,
    ``RateLimit: limit=100, remaining=0, reset=30``.
    """
    limit_header = headers.get("ratelimit", "")
    earlier = {key: float(number) for key, number in _OLD_LIMIT.findall(limit_header)}
    if "reset" in earlier:
        return [earlier["reset"]]
    windows = {
        name: limit["w"]
        for name, limit in _limits(headers.get("ratelimit-policy", "")).items()
        if "w" in limit
    }
    limits = _limits(limit_header)
    waits = {
        name: wait
        for name, limit in limits.items()
        if (wait := limit.get("t", windows.get(name))) is not None
    }
    used_up = [wait for name, wait in waits.items() if limits[name].get("r") == 0]
    if used_up or waits:
        return used_up or list(waits.values())
    return [min(windows.values())] if windows else []


def _limits(text: str) -> dict[str, dict[str, float]]:
    """Read a structured field's list of named items with numbers as parameters (RFC 9651)."""
    return {
        name: {key.lower(): float(number) for key, number in _PARAMETER.findall(parameters)}
        for name, parameters in _LIMIT.findall(text)
    }


def _seconds(text: str) -> float | None:
    """Read a number of seconds, a duration with units, or a point in time after 2001."""
    text = text.strip()
    parts = _DURATION.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        return None
    number = float(text)
    if number < _EPOCH:
        return number
    return max(0.0, (number / 1_000 if number > 1_000 * _EPOCH else number) - time.time())


def _date(text: str) -> float | None:
    """Read the seconds until an HTTP date; 0 where it is past."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    # An HTTP date is in GMT, also in the form that does not say so.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
