"""What whoever starts the server decides: where it listens, who may ask, and the limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.settings import check_range

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Durations in seconds, sizes in bytes. Raises E-USAGE and E-PARAM for what cannot be right."""

    model_name: str
    host: str = "127.0.0.1"
    allowed_hosts: frozenset[str] = frozenset()  # names in the Host header beside the address listened on
    allowed_origins: frozenset[str] = frozenset()  # of pages elsewhere that may ask, as "https://example.org"
    queue: int = 32  # requests that wait, beside those the engine works on
    per_client: int = 4  # requests of one key and address at a time
    max_body_bytes: int = 1 << 20
    body_s: float = 30.0
    header_s: float = 10.0
    idle_s: float = 30.0
    send_s: float = 30.0  # without a reader, before the connection is dropped
    keep_alive_s: float = 10.0  # between comments in a stream without news
    grace_s: float = 5.0  # for what runs when the server is told to stop

    def __post_init__(self) -> None:
        check_range("queue", self.queue, 0, 1 << 16)
        check_range("per_client", self.per_client, 1, 1 << 16)
        for origin in self.allowed_origins:
            check_origin(origin)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def accepts_host(self, name: str) -> bool:
        """Whether a Host header may say `name`. A page that rebinds a name of its own to this address sends that name, so
        on other addresses than loopback every literal address is as good as ours, and no name that was not allowed."""
        if name in self.allowed_hosts or name in LOOPBACK_NAMES:
            return True
        if self.is_loopback:
            return is_loopback(name)
        return name == self.host.lower() or is_address(name)


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or origin != f"{parts.scheme}://{parts.netloc}".lower()
    ):
        hint = "give scheme, name and port only, such as https://example.org:8443"
        raise UsageProblem("E-USAGE", f"{origin!r} is no origin of a web page", hint)
