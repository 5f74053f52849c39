"""Bodies that are no JSON object, whatever route they are sent to; and forms that are none."""

from __future__ import annotations

import gzip
import zlib
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.reliability.pictures import PNG
from tests.reliability.protocols import V2_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON_ROUTES: Final = (
    f"{V2_PATH}/infer",
    f"{V2_PATH}/generate",
    f"{V2_PATH}/generate_stream",
    "/api/v1/describe",
    "/api/v1/batch",
    "/api/v1/jobs",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
)
NO_JSON: Final = "the request body is not valid JSON: "


@dataclass(frozen=True)
class Body:
    """What is sent, and what must be said to it; a message that ends with … is a beginning."""

    name: str
    content: bytes
    message: str
    status: int = 400
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def no_object(kind: str, content: bytes) -> Body:
    """JSON of another kind."""
    return Body(kind, content, f"the request body is {kind}; it must be a JSON object")


def encoded(name: str, encoding: str, content: bytes, message: str, status: int = 400) -> Body:
    """A body with a Content-Encoding."""
    return Body(name, content, message, status, {"Content-Encoding": encoding})


BODIES: Final = [
    Body("nothing", b"", "the request body is empty; it must be a JSON object"),
    Body("white space", b" \r\n ", f"{NO_JSON}…"),
    Body("a brace", b"{", f"{NO_JSON}unexpected end of data: line 1 column 2 (char 1)"),
    Body("something after it", b"{} x", f"{NO_JSON}unexpected content after document: …"),
    Body("two objects", b"{}{}", f"{NO_JSON}unexpected content after document: …"),
    Body("single quotes", b"{'a': 1}", f"{NO_JSON}…"),
    Body("a comment", b"{} // a", f"{NO_JSON}unexpected content after document: …"),
    Body("a comma too many", b'{"a": 1,}', f"{NO_JSON}trailing comma is not allowed: …"),
    Body("a number with a zero before it", b'{"a": 01}', f"{NO_JSON}…"),
    Body("NaN", b'{"a": NaN}', f"{NO_JSON}…"),
    Body("Infinity", b'{"a": Infinity}', f"{NO_JSON}…"),
    Body("a number over all numbers", b'{"a": 1e999}', f"{NO_JSON}number is infinity …"),
    Body("half a surrogate pair", b'{"a": "\\ud800"}', f"{NO_JSON}no low surrogate in string: …"),
    Body("a control character", b'{"a": "\x01"}', f"{NO_JSON}…"),
    Body("no UTF-8", b'{"a": "\xff"}', f"{NO_JSON}str is not valid UTF-8: …"),
    Body("an overlong UTF-8", b'{"a": "\xc0\xaf"}', f"{NO_JSON}str is not valid UTF-8: …"),
    Body("UTF-16", '{"a": 1}'.encode("utf-16"), f"{NO_JSON}str is not valid UTF-8: …"),
    Body("a byte order mark", b"\xef\xbb\xbf{}", f"{NO_JSON}UTF-8 byte order mark (BOM) …"),
    Body("a zero byte after it", b"{}\0", f"{NO_JSON}unexpected content after document: …"),
    Body("a form", b"image=a&prompt=b", f"{NO_JSON}…"),
    Body("a picture", b"\x89PNG\r\n\x1a\n" + bytes(9), f"{NO_JSON}str is not valid UTF-8: …"),
    no_object("a list", b"[]"),
    no_object("null", b"null"),
    no_object("a number", b"5"),
    no_object("a string", b'"{}"'),
    no_object("a truth value", b"true"),
    Body(
        "66 levels",
        b'{"a":' * 66 + b"1" + b"}" * 66,
        "the JSON is nested more than 64 levels deep",
    ),
    Body(
        "100,000 levels",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        f"{NO_JSON}depth limit exceeded: …",
    ),
    Body(
        "a million values",
        b'{"a":[' + b"0," * (1 << 20) + b"0]}",
        "the JSON has about 1048578 values; the limit is 1048576",
    ),
    encoded(
        "an encoding that is not read", "br", b"{}",
        "Content-Encoding is 'br'; it must be gzip, deflate or identity", 415,
    ),
    encoded(
        "two encodings", "gzip, gzip", gzip.compress(gzip.compress(b"{}")),
        "Content-Encoding is 'gzip, gzip'; it must be gzip, deflate or identity", 415,
    ),
    encoded("no gzip", "gzip", b"{}", "the gzip body is corrupt: …"),
    encoded("half a gzip", "gzip", gzip.compress(b"{}")[:-5], "the gzip body is truncated"),
    encoded(
        "gzip with another checksum", "gzip", gzip.compress(b"{}")[:-8] + bytes(8),
        "the gzip body is corrupt: …",
    ),
    encoded(
        "half a deflate", "deflate", zlib.compress(b"{}")[:-2], "the deflate body is truncated"
    ),
    encoded(
        "deflate and more", "deflate", zlib.compress(b"{}") + b"x",
        "the deflate body has bytes after its end",
    ),
    encoded(
        "a gzip bomb", "gzip", gzip.compress(bytes(80 << 20)),
        "request body has at least …", 413,
    ),
]  # fmt: skip


FORM: Final = {"Content-Type": "multipart/form-data; boundary=b"}
END: Final = b"--b--\r\n"
UNREADABLE: Final = "the form cannot be read: "
INVALID_FORM: Final = f"{UNREADABLE}Invalid multipart data."


def part(name: str, content: bytes, *headers: bytes, filename: str | None = None) -> bytes:
    """A part of a form, up to the next one."""
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}'.encode()
    return b"\r\n".join([head, *headers, b"", content, b""])


def form(
    name: str, content: bytes, message: str, status: int = 400, content_type: str = ""
) -> Body:
    """A form for describe."""
    headers = {"Content-Type": content_type} if content_type else FORM
    return Body(name, content, message, status, headers)


IMAGE: Final = part("image", PNG, filename="a.png")
FORMS: Final = [
    form("no parts", b"--b--\r\n", "image is missing: send at least one, as -F image=@photo.jpg"),
    form("no bytes", b"", f"{UNREADABLE}it is cut short"),
    form("no boundary", IMAGE + END, f"{UNREADABLE}Missing boundary in multipart.",
         content_type="multipart/form-data"),
    form("another boundary", IMAGE + END, INVALID_FORM,
         content_type="multipart/form-data; boundary=c"),
    form("no last boundary", IMAGE, f"{UNREADABLE}it is cut short"),
    form("an end inside a picture", IMAGE[:-30], f"{UNREADABLE}it is cut short"),
    form("an end inside a header", IMAGE[:20], f"{UNREADABLE}it is cut short"),
    form("an end behind a picture", IMAGE + part("prompt", b"What")[:-4],
         f"{UNREADABLE}it is cut short"),
    form("no name", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
         f'{UNREADABLE}The Content-Disposition header field "name" must be provided.'),
    form("no disposition", b"--b\r\nX: y\r\n\r\nx\r\n" + END,
         f'{UNREADABLE}The Content-Disposition header field "name" must be provided.'),
    form("a broken header", b"--b\r\n\x00\xff: y\r\n\r\nx\r\n" + END, INVALID_FORM),
    form("a header of 1 MiB", part("image", PNG, b"X: " + b"y" * (1 << 20)) + END, INVALID_FORM),
    form("10,000 headers", part("image", PNG, *[b"X: y"] * 10_000) + END, INVALID_FORM),
    form("line feeds alone", (IMAGE + END).replace(b"\r\n", b"\n"), INVALID_FORM),
    form("something before it", b"preamble\r\n" + IMAGE + END, INVALID_FORM),
    form("a picture as text", part("image", b"photo.jpg") + END, "image is a text field; …"),
    form("a prompt as a file", IMAGE + part("prompt", b"x", filename="x") + END,
         "prompt is a file; it must be a text field"),
    form("a number as a file", IMAGE + part("seed", b"1", filename="x") + END,
         "seed is a file; it must be a text field"),
    form("two prompts", IMAGE + part("prompt", b"x") * 2 + END,
         "prompt is given 2 times; the limit is 1"),
    form("a prompt that is no UTF-8", IMAGE + part("prompt", b"caf\xe9") + END,
         f"{UNREADABLE}prompt is not UTF-8 (byte 3)"),
    form("a Latin-1 form", IMAGE + part("prompt", b"caf\xe9") + END,
         f"{UNREADABLE}prompt is not UTF-8 (byte 3)",
         content_type="multipart/form-data; boundary=b; charset=latin-1"),
    form("101 pictures", IMAGE * 101 + END,
         f"{UNREADABLE}Too many files. Maximum number of files is 100."),
    form("101 fields", part("stop", b"x") * 101 + END,
         f"{UNREADABLE}Too many fields. Maximum number of fields is 100."),
    form("a name of 1 MiB", part("n" * (1 << 20), b"x") + END, INVALID_FORM),
    form("a name from elsewhere", part("__proto__", b"x") + END, "unknown field '__proto__'; …"),
    form("a picture in base64", part("image", b64encode(PNG), b"Content-Transfer-Encoding: base64",
                                     filename="a.png") + END,
         "image is not a JPEG, PNG, WebP or GIF: it is base64 text; it must be decoded, or "
         "declared as base64"),
    form("an empty file", part("image", b"", filename="a.png") + END,
         "image is empty: it has 0 bytes"),
    form("an urlencoded form", b"image=x",
         "Content-Type is 'application/x-www-form-urlencoded'; it must be multipart/form-data or "
         "application/json", 415, "application/x-www-form-urlencoded"),
    form("plain text", b"x", "Content-Type is 'text/plain'; it must be …", 415, "text/plain"),
    form("another multipart", IMAGE + END, "Content-Type is 'multipart/mixed'; it must be …", 415,
         "multipart/mixed; boundary=b"),
    form("a picture alone", PNG, "Content-Type is 'image/png'; it must be …", 415, "image/png"),
]  # fmt: skip
# Forms as odd clients write them, which are forms all the same.
GOOD_FORMS: Final = [
    form("something behind it", IMAGE + END + b"epilogue", "", 200),
    form("a path as the file's name", part("image", PNG, filename="../etc/passwd") + END, "", 200),
    form("a quoted boundary", IMAGE + END, "", 200, 'multipart/form-data; boundary="b"'),
    form("another type of file", part("image", PNG, b"Content-Type: text/html", filename="a") + END,
         "", 200),
]  # fmt: skip
