"""Bytes that no HTTP library would send, and the status that must come back for each."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.serving import RunningServer

BODY: Final = b'{"image": 5}'
NO_HTTP: Final = '{"error":"the request is not valid HTTP/1.1"}'
TOO_LARGE: Final = '{"error":"the request\'s head is larger than the limit of 65536 bytes"}'
ANSWER_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Raw:
    """What is sent; half: and that no more will come. message: the body, or a part of it.

    status: None where the connection may be closed without a word
    """

    name: str
    data: bytes
    status: int | None
    message: str = ""
    half: bool = False

    def __str__(self) -> str:
        return self.name


def get(target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """A GET that asks for the connection's end."""
    line = b"GET " + target + b" " + version
    return b"\r\n".join([line, b"Host: x", b"Connection: close", *headers, b"", b""])


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    """A POST to describe."""
    head = (b"POST /api/v1/describe HTTP/1.1", b"Host: x", b"Content-Type: application/json")
    return b"\r\n".join([*head, *headers, b"", body])


def length(value: bytes, *more: bytes) -> bytes:
    """A POST with a Content-Length."""
    return post(b"Content-Length: " + value, *more)


def chunks(data: bytes) -> bytes:
    """A POST in chunks."""
    return post(b"Transfer-Encoding: chunked", body=data)


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RAW: Final = [
    Raw("zeros", bytes(64) + b"\r\n\r\n", 400, NO_HTTP),
    Raw("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100), 400, NO_HTTP),
    Raw("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400, NO_HTTP),
    Raw("a method that is none", b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n", 400, NO_HTTP),
    Raw("a method in two words", b"GE T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400, NO_HTTP),
    Raw("HTTP/3", get(b"/health", version=b"HTTP/3.0"), 400, NO_HTTP),
    Raw("no target", b"GET HTTP/1.1\r\n\r\n", 400, NO_HTTP),
    Raw("a target that is no ASCII", get(b"/v2/\xff\xfe"), 400, NO_HTTP),
    Raw("a target of 100,000 bytes", get(b"/" + b"a" * 100_000), 431, TOO_LARGE),
    Raw("a header of 200,000 bytes", get(b"/health", b"X: " + b"a" * 200_000), 431, TOO_LARGE),
    Raw("20,000 headers", get(b"/health", *[b"X: y"] * 20_000), 431, TOO_LARGE),
    Raw("a zero in a header", get(b"/health", b"X: a\0b"), 400, NO_HTTP),
    Raw("a header without a colon", get(b"/health", b"nothing"), 400, NO_HTTP),
    Raw("a space before the colon", get(b"/health", b"X : a"), 400, NO_HTTP),
    Raw("a header in two lines", get(b"/health", b"X: a\r\n b"), 400, NO_HTTP),
    Raw("a path upwards", get(b"/v2/../../../etc/passwd"), 404, "no such route"),
    Raw("an encoded path upwards", get(b"/v2/%2e%2e/%2e%2e/etc/passwd"), 404, "no such route"),
    Raw("a zero in the path", get(b"/v2/%00"), 404, "no such route"),
    Raw("a broken escape", get(b"/v2/%zz"), 404, "no such route"),
    Raw("no UTF-8 in the path", get(b"/v2/models/%ff%fe"), 404, "is not served here"),
    Raw("a line's end in the path", get(b"/v2/models/a%0d%0aX:%20y"), 404, "is not served here"),
    Raw("all of the server", b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    Raw("a tunnel", b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, NO_HTTP),
    Raw("no length", post(b"Connection: close", body=b""), 400, "the request body is empty"),
    Raw("two lengths", length(b"12", b"Content-Length: 13"), 400, NO_HTTP),
    Raw("a negative length", length(b"-1"), 400, NO_HTTP),
    Raw("a length in words", length(b"twelve"), 400, NO_HTTP),
    Raw("a length with a sign", length(b"+12"), 400, NO_HTTP),
    Raw("a length in hexadecimal", length(b"0xc"), 400, NO_HTTP),
    Raw("a length over 64 bits", length(b"9" * 30), 400, NO_HTTP),
    Raw("a length over the limit", length(b"104857600"), 413, "at least 104857600 bytes"),
    Raw("a length below the body's", length(b"5", b"Connection: close"), 400, "not valid JSON"),
    Raw("a length over the body's", length(b"100"), None, half=True),
    Raw("a length and chunks", length(b"12", b"Transfer-Encoding: chunked"), 400, NO_HTTP),
    Raw("another transfer encoding", post(b"Transfer-Encoding: zip"), 400, NO_HTTP),
    Raw("chunks that are encoded", post(b"Transfer-Encoding: chunked, gzip"), 400, NO_HTTP),
    Raw("a chunk without a size", chunks(b"\r\n" + BODY), 400, NO_HTTP),
    Raw("a chunk's size in words", chunks(b"zz\r\n" + BODY), 400, NO_HTTP),
    Raw("a negative chunk", chunks(b"-1\r\n" + BODY), 400, NO_HTTP),
    Raw("a chunk over 64 bits", chunks(b"f" * 20 + b"\r\n" + BODY), 400, NO_HTTP),
    Raw("a chunk below its data", chunks(b"5\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, NO_HTTP),
    Raw("chunks without an end", chunks(b"c\r\n" + BODY + b"\r\n"), None, half=True),
    Raw("HTTP/2 that breaks off", PREFACE + b"\0\0", None, half=True),
    Raw("HTTP/2 with data of no stream", PREFACE + b"\0\0\1\0\0\0\0\0\1x", None),
]


def answer_to(server: RunningServer, raw: Raw) -> tuple[int | None, str]:
    """Status and body of the answer; the connection must be closed after it."""
    with socket.create_connection(("127.0.0.1", server.http_port), ANSWER_SECONDS) as wire:
        wire.sendall(raw.data)
        if raw.half:
            wire.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    is_http = head.startswith(b"HTTP/1.1 ")
    return (int(head.split()[1]), body.decode()) if is_http else (None, "")
