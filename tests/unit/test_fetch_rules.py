"""The URLs that attackers send, and which rule each of them breaks."""

from __future__ import annotations

import pytest

from model.serving.fetch_rules import UrlRefused, is_public, judge_url
from model.settings import ImageSettings

LIMITS = ImageSettings(url_domains=("pictures.example", "*.cdn.example", "93.184.216.34"))
ANY_HOST = ImageSettings(url_domains=("*",))

SCHEME = "must be http or https"
USER = "must carry no user name or password"
HOST = "must name a host"
NUMBERS = "must write an address as four decimal numbers"
PORT = "must have port 80 or 443"
NOT_ALLOWED = "must name a host that this server is set to fetch from"
CHARACTERS = "must hold no space, no control character and no backslash"
INVALID = "must be a valid URL"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://pictures.example/a.jpg", "pictures.example", 80),
        ("https://pictures.example/a.jpg?size=9&sig=%2F#part", "pictures.example", 443),
        ("HTTPS://Pictures.Example./a.jpg", "pictures.example", 443),
        ("http://pictures.example:443/a.jpg", "pictures.example", 443),
        ("https://pictures.example:/a.jpg", "pictures.example", 443),
        ("https://a.cdn.example/a.jpg", "a.cdn.example", 443),
        ("https://a.b.cdn.example/a.jpg", "a.b.cdn.example", 443),
        ("https://93.184.216.34/a.jpg", "93.184.216.34", 443),
        ("https://pictures.example/a@b/c.jpg", "pictures.example", 443),
    ],
)
def test_a_url_within_the_rules_is_taken(url: str, host: str, port: int) -> None:
    target = judge_url(url, LIMITS)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        # Schemes
        ("file:///etc/passwd", SCHEME),
        ("ftp://pictures.example/a.jpg", SCHEME),
        ("gopher://pictures.example:80/_x", SCHEME),
        ("data:image/png;base64,AAAA", SCHEME),
        ("//pictures.example/a.jpg", SCHEME),
        ("pictures.example/a.jpg", SCHEME),
        # Users, and hosts that look like another
        ("http://user@pictures.example/", USER),
        ("http://user:word@pictures.example/", USER),
        ("http://:word@pictures.example/", USER),
        ("http://pictures.example@169.254.169.254/", USER),
        ("http://pictures.example:80@169.254.169.254/", USER),
        ("http://169.254.169.254%2f@pictures.example/", USER),
        ("http://pictures.example%40169.254.169.254/", HOST),
        ("http://pictures.example\\@169.254.169.254/", CHARACTERS),
        ("http:\\\\169.254.169.254\\", CHARACTERS),
        ("http://169.254.169.254\\.pictures.example/", CHARACTERS),
        ("http://pictures.example\t.evil.example/", CHARACTERS),
        ("http://pictures.example\r\nHost: evil.example/", CHARACTERS),
        ("http:// pictures.example/", CHARACTERS),
        ("http://pictures.example/a b.jpg", CHARACTERS),
        ("http://pictures.example\0.evil.example/", CHARACTERS),
        ("http://pictures.example%00.evil.example/", HOST),
        ("http://169.254.169.254#@pictures.example/", NOT_ALLOWED),
        ("http://169.254.169.254?@pictures.example/", NOT_ALLOWED),
        ("http://169.254.169.254#.pictures.example/", NOT_ALLOWED),
        ("http://pictures.example.evil.example/", NOT_ALLOWED),
        ("http://evil-pictures.example/", NOT_ALLOWED),
        ("http://evilcdn.example/", NOT_ALLOWED),
        ("http://cdn.example/", NOT_ALLOWED),
        ("http://pictures.exampl/", NOT_ALLOWED),
        ("http://pіctures.example/", NOT_ALLOWED),  # a Cyrillic letter
        # Ports
        ("http://pictures.example:22/", PORT),
        ("http://pictures.example:6379/", PORT),
        ("http://pictures.example:0/", PORT),
        ("http://pictures.example:65536/", PORT),
        ("http://pictures.example:80:22/", INVALID),
        ("http://pictures.example:-1/", PORT),
        ("http://pictures.example:8o/", INVALID),
        # Not hosts
        ("http://", HOST),
        ("http:///etc/passwd", HOST),
        ("http://.pictures.example/", HOST),
        ("http://pictures..example/", HOST),
        (f"http://{'a' * 64}.{'a' * 200}.example/", HOST),
        ("http://[::1/", INVALID),
        ("http://[fe80::1%25eth0]/", HOST),
        ("http://pictures.example/" + "a" * 8192, "must have at most 8192 characters"),
    ],
)
def test_a_url_that_breaks_a_rule_is_refused_by_it(url: str, rule: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        judge_url(url, LIMITS)
    assert refused.value.rule == rule
    assert str(refused.value).startswith(f"image URL {rule}")


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",  # 127.0.0.1
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "0",
        "0x",
        "169.254.43518",
        "169.254.169.0xfe",
        "0251.0376.0251.0376",
        "00127.0.0.1",
        "1.2.3.4.5",
        "256.256.256.256",
        "127。1",
    ],
)
def test_an_address_in_no_usual_form_is_refused_wherever_fetching_is_allowed(host: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        judge_url(f"http://{host}/", ANY_HOST)
    assert refused.value.rule in (NUMBERS, INVALID)


def test_unicode_dots_are_dots() -> None:
    assert judge_url("http://169。254。169。254/", ANY_HOST).host == "169.254.169.254"
    assert not is_public("169.254.169.254")


def test_allowed_domains_are_told_apart_from_ports_by_the_settings() -> None:
    limits = ImageSettings(url_domains=("Pictures.Example",), url_ports=(8443,))
    assert judge_url("https://pictures.example:8443/", limits).port == 8443
    with pytest.raises(UrlRefused, match="must have port 8443; it has 443"):
        judge_url("https://pictures.example/", limits)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("127.0.0.1", id="this machine"),
        pytest.param("127.255.255.254", id="this machine, too"),
        pytest.param("0.0.0.0", id="any of this machine"),
        pytest.param("0.1.2.3", id="this network"),
        pytest.param("10.0.0.1", id="private"),
        pytest.param("172.16.0.1", id="private, too"),
        pytest.param("192.168.1.1", id="private, as at home"),
        pytest.param("169.254.169.254", id="a cloud's metadata"),
        pytest.param("100.64.0.1", id="a carrier's network"),
        pytest.param("100.100.100.200", id="Alibaba's metadata"),
        pytest.param("192.0.0.192", id="Oracle's metadata"),
        pytest.param("168.63.129.16", id="Azure's host agent"),
        pytest.param("198.18.0.1", id="benchmarks"),
        pytest.param("203.0.113.1", id="documentation"),
        pytest.param("192.88.99.1", id="a relay"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("239.255.255.250", id="multicast, of this site"),
        pytest.param("240.0.0.1", id="reserved"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("::", id="any of this machine, IPv6"),
        pytest.param("::1", id="this machine, IPv6"),
        pytest.param("::ffff:127.0.0.1", id="this machine, mapped"),
        pytest.param("::ffff:169.254.169.254", id="metadata, mapped"),
        pytest.param("::ffff:a9fe:a9fe", id="metadata, mapped, in hexadecimal"),
        pytest.param("::127.0.0.1", id="this machine, compatible"),
        pytest.param("64:ff9b::169.254.169.254", id="metadata behind NAT64"),
        pytest.param("64:ff9b:1::1", id="a NAT64 of this network"),
        pytest.param("2002:7f00:1::", id="this machine by 6to4"),
        pytest.param("2001:0:7f00:1::", id="Teredo"),
        pytest.param("2001:db8::1", id="documentation, IPv6"),
        pytest.param("fc00::1", id="unique local"),
        pytest.param("fd00:ec2::254", id="Amazon's metadata, IPv6"),
        pytest.param("fe80::1", id="link-local"),
        pytest.param("fec0::1", id="site-local"),
        pytest.param("ff02::1", id="multicast, IPv6"),
    ],
)
def test_addresses_that_lead_inside_are_not(address: str) -> None:
    assert not is_public(address)
