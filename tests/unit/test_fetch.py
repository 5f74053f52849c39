"""Fetching from a real server on this machine: what is taken, what is not, in what time."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from model.errors import InvalidImage
from model.serving.fetch import Fetcher
from model.settings import ImageSettings
from tests.picture_server import PictureServer, picture_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 64
HOST = "pictures.example"


class Names:
    """A resolver that knows what it is told, one answer after the other, and counts."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers.get(host.partition(".")[0])
        if not answers:
            raise OSError(f"{host} is unknown at 10.0.0.53")
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture(scope="module")
def pictures() -> Iterator[PictureServer]:
    with picture_server(PICTURE) as running:
        yield running


def limits(port: int = 80, **changes: Any) -> ImageSettings:
    values = {"url_domains": (HOST,), "url_ports": (port,), "max_bytes": 100_000, **changes}
    return ImageSettings(**values)


def fetcher(pictures: PictureServer, **changes: Any) -> Fetcher:
    """One that may fetch from the server on this machine, under a name."""
    settings = limits(pictures.port, url_allow_private=True, **changes)
    return Fetcher(settings, Names(pictures=[["127.0.0.1"]]))


async def test_a_picture_is_fetched_as_it_is(pictures: PictureServer) -> None:
    url = pictures.url("/picture.jpg?size=9#part", HOST)
    assert await fetcher(pictures).fetch(url) == PICTURE
    path, headers = pictures.requests[-1]
    assert path == "/picture.jpg?size=9"
    assert headers["Host"] == f"{HOST}:{pictures.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & headers.keys()


async def test_several_are_fetched_side_by_side(pictures: PictureServer) -> None:
    urls = [pictures.url(f"/picture.jpg?{n}", HOST).encode() for n in range(40)]
    assert await fetcher(pictures).fetch_all(urls) == dict.fromkeys(urls, PICTURE)


async def test_one_failure_ends_all(pictures: PictureServer) -> None:
    urls = [pictures.url(f"/{name}", HOST).encode() for name in ("slow", "missing")]
    started = time.monotonic()
    with pytest.raises(InvalidImage, match="status 404"):
        await fetcher(pictures).fetch_all(urls)
    assert time.monotonic() - started < 3


async def test_nothing_is_fetched_where_no_host_is_named() -> None:
    with pytest.raises(InvalidImage, match="fetching is off on this server"):
        await Fetcher(ImageSettings(), Names()).fetch("https://pictures.example/a.jpg")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "was answered with status 404, not 200"),
        ("/secret", "leads to something that is not a JPEG, PNG, WebP or GIF"),
        ("/compressed", "was answered compressed"),
        ("/declared", "has 999999999 bytes; the limit is 100000"),
        ("/endless", "has over 100000 bytes, which is the limit"),
        ("/silent", "took too long: the limits are 3 s to connect and 0.3 s for each part"),
        ("/slow", "was not read within 1 s, the limit"),
        ("/broken", "could not be reached, or its answer could not be read"),
        ("/nowhere", "redirects to nowhere"),
        ("/circle", "redirects more than 3 times, the limit"),
    ],
)
async def test_what_a_server_does_wrong_is_told_without_what_it_said(
    pictures: PictureServer, path: str, message: str
) -> None:
    one = fetcher(pictures, url_read_seconds=0.3, url_total_seconds=1)
    with pytest.raises(InvalidImage) as refused:
        await one.fetch(pictures.url(path, HOST))
    assert message in str(refused.value)
    assert not [word for word in ("secret", "root", "127.0.0.1") if word in str(refused.value)]


async def test_redirects_are_followed_within_the_rules(pictures: PictureServer) -> None:
    one = fetcher(pictures)
    last = pictures.url("/picture.jpg", HOST)
    for target in ("/picture.jpg", last, f"/redirect?to={last}"):
        assert await one.fetch(pictures.url(f"/redirect?to={target}", HOST)) == PICTURE


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("http://169.254.169.254/latest/meta-data/", "must have port"),
        ("http://169.254.169.254:{port}/latest/", "must name a host that this server is set to"),
        ("http://internal.example:{port}/picture.jpg", "must name a host that this server is set"),
        ("file:///etc/passwd", "must be http or https"),
        ("http://u:p@pictures.example:{port}/picture.jpg", "must carry no user name"),
        ("http://pictures.example:22/", "must have port"),
        ("http://[::1", "its answer could not be read"),
        ("http://0x7f.1:{port}/picture.jpg", "must write an address as four decimal numbers"),
        ("//evil.example:{port}/picture.jpg", "must name a host that this server is set to"),
    ],
)
async def test_redirects_are_judged_like_any_url(
    pictures: PictureServer, target: str, rule: str
) -> None:
    url = pictures.url("/redirect?to=" + target.format(port=pictures.port), HOST)
    seen = len(pictures.requests)
    with pytest.raises(InvalidImage) as refused:
        await fetcher(pictures).fetch(url)
    assert rule in str(refused.value)
    # What the server answered stays with this machine.
    assert "169.254" not in str(refused.value)
    assert "internal" not in str(refused.value)
    assert len(pictures.requests) == seen + 1


class Dialled(httpx.AsyncBaseTransport):
    """A network of nothing but pictures, that notes what was dialled."""

    def __init__(self, *, unreachable: tuple[str, ...] = ()) -> None:
        self.requests: list[httpx.Request] = []
        self._unreachable = unreachable

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host in self._unreachable:
            raise httpx.ConnectError(f"no route to {request.url.host}")
        return httpx.Response(200, stream=httpx.ByteStream(PICTURE))


async def test_the_address_that_was_judged_is_dialled_under_its_name() -> None:
    network = Dialled()
    names = Names(pictures=[["93.184.216.34"], ["127.0.0.1"]])
    one = Fetcher(limits(443), names, transport=network)
    assert await one.fetch("https://pictures.example/a.jpg") == PICTURE
    [request] = network.requests
    assert names.asked == [HOST]
    assert request.url.host == "93.184.216.34"
    assert request.headers["host"] == HOST
    assert request.extensions["sni_hostname"] == HOST


async def test_a_name_that_changes_its_mind_is_judged_anew() -> None:
    names = Names(pictures=[["93.184.216.34"], ["127.0.0.1"]])
    one = Fetcher(limits(443), names, transport=Dialled())
    await one.fetch("https://pictures.example/a.jpg")
    with pytest.raises(InvalidImage, match="must name a host with public addresses only"):
        await one.fetch("https://pictures.example/a.jpg")


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.1.2.3"],
        ["::1"],
        ["::ffff:10.1.2.3"],
        ["93.184.216.34", "10.1.2.3"],
        ["2606:2800:220:1::1", "fd00::1"],
    ],
)
async def test_one_address_inside_is_enough_to_refuse(addresses: list[str]) -> None:
    network = Dialled()
    one = Fetcher(limits(), Names(pictures=[addresses]), transport=network)
    with pytest.raises(InvalidImage) as refused:
        await one.fetch("http://pictures.example/a.jpg")
    assert str(refused.value) == "image URL must name a host with public addresses only"
    assert not network.requests


async def test_an_address_in_the_url_is_judged_as_well() -> None:
    one = Fetcher(limits(url_domains=("*",)), Names(), transport=Dialled())
    assert await one.fetch("http://93.184.216.34/a.jpg") == PICTURE
    assert await one.fetch("http://[2606:2800:220:1::1]/a.jpg") == PICTURE
    for url in ("http://10.0.0.1/", "http://[::1]/", "http://[::ffff:7f00:1]/"):
        with pytest.raises(InvalidImage, match="must name a host with public addresses only"):
            await one.fetch(url)


async def test_the_next_address_is_tried_where_one_cannot_be_connected_to() -> None:
    network = Dialled(unreachable=("2606:2800:220:1::1",))
    names = Names(pictures=[["2606:2800:220:1::1", "93.184.216.34"]])
    assert await Fetcher(limits(), names, transport=network).fetch("http://pictures.example/a.jpg")
    assert [request.url.host for request in network.requests] == [
        "2606:2800:220:1::1",
        "93.184.216.34",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (Names(), "must name a host that can be resolved"),
        (
            Names(pictures=[["93.184.216.34"]]),
            "could not be reached, or its answer could not be read",
        ),
    ],
)
async def test_a_host_that_is_not_there_is_told_without_addresses(
    names: Names, message: str
) -> None:
    one = Fetcher(limits(), names, transport=Dialled(unreachable=("93.184.216.34",)))
    with pytest.raises(InvalidImage) as refused:
        await one.fetch("http://pictures.example/a.jpg")
    assert message in str(refused.value)
    assert not [one for one in ("10.0", "93.184") if one in str(refused.value)]


async def test_a_slow_resolver_is_within_the_time() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    one = Fetcher(limits(url_total_seconds=0.1), never)
    with pytest.raises(InvalidImage, match=r"was not read within 0\.1 s, the limit"):
        await one.fetch("http://pictures.example/a.jpg")


async def test_proxies_of_the_environment_are_not_used(
    pictures: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetcher(pictures).fetch(pictures.url("/picture.jpg", HOST)) == PICTURE


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS for a name, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


@pytest.mark.parametrize(
    ("certified", "works"),
    [
        pytest.param(HOST, True, id="the name's own certificate"),
        pytest.param("other.example", False, id="another's"),
    ],
)
async def test_tls_is_checked_for_the_name_though_the_address_is_dialled(
    tmp_path: Path, certified: str, works: bool
) -> None:
    server_tls, client_tls = certificate(tmp_path, certified)
    with picture_server(PICTURE, server_tls) as pictures:
        settings = limits(pictures.port, url_allow_private=True)
        one = Fetcher(settings, Names(pictures=[["127.0.0.1"]]), client_tls)
        url = pictures.url("/picture.jpg", HOST, "https")
        if works:
            assert await one.fetch(url) == PICTURE
        else:
            with pytest.raises(InvalidImage, match="could not be reached"):
                await one.fetch(url)
        untrusting = Fetcher(settings, Names(pictures=[["127.0.0.1"]]))
        with pytest.raises(InvalidImage, match="could not be reached"):
            await untrusting.fetch(url)
