"""Which URLs may be fetched and which addresses dialled: pure rules, each with its own words.

A URL is parsed once, here; what was judged is what is dialled. A refusal names the rule, and never
an address: what a name means inside the network is not the client's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

import httpx

from model.errors import InvalidImage
from model.serving.parameters import shown

if TYPE_CHECKING:
    from model.settings import ImageSettings

MAX_URL_LENGTH: Final = 8192
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_HOST_LENGTH: Final = 253
FORBIDDEN: Final = re.compile(r"[\\\s\x00-\x1f\x7f]")
HOST_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# The last label of a name is never a number: resolvers read 127.1, 0x7f000001 and 017700000001 as
# addresses.
NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Addresses that some Python counts as global but that lead inside, or nowhere: Azure's host agent,
# protocols' own (a metadata service among them), relays and tunnels into IPv4, documentation.
NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "168.63.129.16/32",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "::/96",
            "2001::/23",
            "2002::/16",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)
NAT64: Final = ip_network("64:ff9b::/96")


class UrlRefused(InvalidImage):
    """A URL that is not fetched.

    rule: what a URL must be or have, to be told of a redirect too; seen: what this one is or has
    instead, which is the client's own only where it is the client's own URL
    """

    def __init__(self, rule: str, seen: str = "") -> None:
        super().__init__(f"image URL {rule}; {seen}" if seen else f"image URL {rule}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be fetched; host in lower case, without a last dot, in ASCII."""

    url: httpx.URL
    host: str
    port: int


def judge_url(text: str, limits: ImageSettings) -> Target:
    """What to fetch; raises UrlRefused."""
    url = _parse(text)
    if url.scheme not in DEFAULT_PORTS:
        raise UrlRefused("must be http or https", f"its scheme is {shown(url.scheme)}")
    if url.userinfo:
        raise UrlRefused("must carry no user name or password")
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    _check_host(host)
    port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if port not in limits.url_ports:
        ports = " or ".join(map(str, limits.url_ports))
        raise UrlRefused(f"must have port {ports}", f"it has {port}")
    if not any(_matches(host, pattern.lower()) for pattern in limits.url_domains):
        raise UrlRefused(
            "must name a host that this server is set to fetch from", f"it names {shown(host)}"
        )
    return Target(url, host, port)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, and not to this network or machine."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped
        if inner is None and ip in NAT64:
            inner = IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def is_address(host: str) -> bool:
    """Whether a host is an IP address itself; one with a zone is none, it means this machine's."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _parse(text: str) -> httpx.URL:
    if len(text) > MAX_URL_LENGTH:
        raise UrlRefused(f"must have at most {MAX_URL_LENGTH} characters", f"it has {len(text)}")
    # Half of all parsers take a backslash for a slash: they would see another host.
    if FORBIDDEN.search(text):
        raise UrlRefused("must hold no space, no control character and no backslash")
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as e:
        raise UrlRefused("must be a valid URL") from e


def _check_host(host: str) -> None:
    if is_address(host):
        return
    if not HOST_NAME.fullmatch(host) or len(host) > MAX_HOST_LENGTH:
        raise UrlRefused("must name a host", f"it names {shown(host)}")
    if NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        raise UrlRefused("must write an address as four decimal numbers", f"it has {shown(host)}")


def _matches(host: str, pattern: str) -> bool:
    """A pattern is a host, `*.` and a domain for all names below it, or `*` for any."""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in ("*", host)
