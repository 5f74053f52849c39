"""Pictures by URL, the same way for every protocol: off unless the operator names hosts.

A name is resolved once; all its addresses must be public; they are dialled by number, with the name
kept for TLS and Host. So a name that resolves differently a moment later gains nothing. Redirects
are judged like any other URL. No proxy, no cookies, no credentials, no compression, no connection
that is used twice.
"""

from __future__ import annotations

import asyncio
import socket
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httpx

from model.errors import InvalidImage
from model.serving.fetch_rules import UrlRefused, is_address, is_public, judge_url
from model.serving.image_files import FORMATS, is_picture

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from model.serving.fetch_rules import Target
    from model.settings import ImageSettings

MAX_FETCHES: Final = 16
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
HEADERS: Final = {
    "Accept": "image/jpeg, image/png, image/webp, image/gif",
    # What arrives is what is counted and decoded.
    "Accept-Encoding": "identity",
    "User-Agent": "qwen3-vl-server",
    "Connection": "close",
}
FETCHING_OFF: Final = "image is a URL; fetching is off on this server: send the picture itself"


async def resolve(host: str, port: int) -> list[str]:
    """A name's addresses, as the system has them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches pictures within the settings.

    resolve: a host's addresses; tls: trusted certificates, httpx's own by default
    transport: in place of the network, for tests
    """

    def __init__(
        self,
        limits: ImageSettings,
        resolve: Callable[[str, int], Awaitable[list[str]]] = resolve,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._tls = tls
        self._transport = transport
        self._places = asyncio.Semaphore(MAX_FETCHES)

    async def fetch_all(self, urls: Iterable[bytes]) -> dict[bytes, bytes]:
        """The file of each URL, fetched side by side; the first failure ends all."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(self.fetch(_text(url))) for url in urls}
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def fetch(self, url: str) -> bytes:
        """A picture's file; raises InvalidImage with the rule or the limit that was met."""
        limits = self._limits
        if not limits.url_domains:
            raise InvalidImage(FETCHING_OFF)
        target = judge_url(url, limits)
        async with self._places:
            try:
                async with asyncio.timeout(limits.url_total_seconds):
                    return await self._follow(target)
            except TimeoutError as e:
                raise InvalidImage(
                    f"image URL was not read within {limits.url_total_seconds:g} s, the limit"
                ) from e

    async def _follow(self, target: Target) -> bytes:
        """The file at the end of the redirects."""
        for _ in range(self._limits.url_max_redirects + 1):
            found = await self._get(target)
            if isinstance(found, bytes):
                return found
            try:
                target = judge_url(found, self._limits)
            except UrlRefused as e:
                raise InvalidImage(
                    f"image URL redirects to one that is refused: it {e.rule}"
                ) from e
        raise InvalidImage(
            f"image URL redirects more than {self._limits.url_max_redirects} times, the limit"
        )

    async def _get(self, target: Target) -> bytes | str:
        """The file, or the URL that it is said to be at."""
        try:
            return await self._dial(target)
        except httpx.TimeoutException as e:
            raise InvalidImage(
                f"image URL's host took too long: the limits are "
                f"{self._limits.url_connect_seconds:g} s to connect and "
                f"{self._limits.url_read_seconds:g} s for each part"
            ) from e
        except httpx.HTTPError as e:
            # Not its text: it may hold an address.
            raise InvalidImage(
                "image URL's host could not be reached, or its answer could not be read"
            ) from e

    async def _dial(self, target: Target) -> bytes | str:
        """What the first address that can be connected to answers."""
        failure: httpx.TransportError = httpx.ConnectError("no address")
        for address in await self._addresses(target):
            try:
                return await self._get_from(address, target)
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                failure = e
        raise failure

    async def _addresses(self, target: Target) -> list[str]:
        if is_address(target.host):
            addresses = [target.host]
        else:
            try:
                addresses = await self._resolve(target.host, target.port)
            except (OSError, UnicodeError) as e:
                raise UrlRefused("must name a host that can be resolved") from e
        if not self._limits.url_allow_private and not all(map(is_public, addresses)):
            raise UrlRefused("must name a host with public addresses only")
        return addresses

    async def _get_from(self, address: str, target: Target) -> bytes | str:
        limits = self._limits
        # A client for each request: its pool would know a connection by the address, not by the
        # name whose certificate was checked.
        async with httpx.AsyncClient(
            verify=self._tls_context,
            transport=self._transport,
            timeout=httpx.Timeout(limits.url_read_seconds, connect=limits.url_connect_seconds),
            trust_env=False,
        ) as client:
            request = client.build_request(
                "GET",
                target.url.copy_with(host=address),
                headers={"Host": target.url.netloc.decode("ascii"), **HEADERS},
                extensions={"sni_hostname": target.host},
            )
            response = await client.send(request, stream=True)
            try:
                return await self._read(response, target)
            finally:
                await response.aclose()

    async def _read(self, response: httpx.Response, target: Target) -> bytes | str:
        if response.status_code in REDIRECTS:
            return self._location(response, target)
        if response.status_code != HTTPStatus.OK:
            raise InvalidImage(
                f"image URL was answered with status {response.status_code}, not 200"
            )
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise InvalidImage("image URL was answered compressed, which was not asked for")
        limit = self._limits.max_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise InvalidImage(f"image URL has {declared} bytes; the limit is {limit}")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limit:
                raise InvalidImage(f"image URL has over {limit} bytes, which is the limit")
        if not is_picture(content):
            # Not what it is instead: that would read documents to whoever can name their URL.
            raise InvalidImage(f"image URL leads to something that is not a {FORMATS}")
        return bytes(content)

    def _location(self, response: httpx.Response, target: Target) -> str:
        try:
            return str(target.url.join(response.headers["location"]))
        except (KeyError, httpx.InvalidURL) as e:
            raise InvalidImage("image URL redirects to nowhere") from e

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        return self._tls or httpx.create_ssl_context(trust_env=False)


def _text(url: bytes) -> str:
    try:
        return url.decode()
    except UnicodeDecodeError as e:
        raise UrlRefused("must be a valid URL") from e
