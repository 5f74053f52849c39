"""Faults that a question can have in any protocol, with what is said of each.

The same fault must be of the same class everywhere: HTTP's 400 is gRPC's INVALID_ARGUMENT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.reliability.pictures import BAD, PNG
from tests.reliability.protocols import WAYS, Ask, Way

if TYPE_CHECKING:
    from collections.abc import Mapping

GRPC: Final = ("gRPC", "gRPC stream")
JSON: Final = ("V2 JSON", "V2 binary", "generate", "generate_stream", "describe", "openai")
SAME_CLASS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}

NO_INTEGER: Final = "it must be an integer, not "
NO_NUMBER: Final = "it must be a number, not "
SIXTY_FOUR_BITS: Final = "it must be an integer of at most 64 bits"
URL_REFUSED: Final = "image is a URL; fetching is off on this server: send the picture itself"
NO_FILE: Final = (
    "image is a text field; it must be a file, as -F image=@photo.jpg with the @, or a URL"
)


@dataclass(frozen=True)
class Fault:
    """A question, and what must be said to it.

    message: the whole text, or its beginning where it ends with …
    otherwise: other words of a protocol or a family
    not_in: protocols and families that have no such fault
    """

    name: str
    ask: Ask
    message: str
    status: int = 400
    otherwise: Mapping[str, str] = field(default_factory=dict)
    not_in: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def concerns(self, way: Way) -> bool:
        """Whether the protocol has a form for it, in which it is a fault."""
        return not {way.name, way.family} & set(self.not_in) and way.can_say(self.ask)

    def words(self, way: Way) -> str:
        """What this protocol says."""
        return self.otherwise.get(way.name, self.otherwise.get(way.family, self.message))


def said(text: str, expected: str) -> bool:
    """Whether a text is the expected one, or begins so where that ends with …"""
    if expected.endswith("…"):
        return text.startswith(expected[:-1])
    return text == expected


def wrong(name: str, value: Any, message: str, **more: Any) -> Fault:
    """A parameter with a value that it may not have."""
    return Fault(f"{name}: {value!r:.40}", Ask((PNG,), parameters={name: value}), message, **more)


def parameter(name: str, value: Any, what: str, shown: str = "", **more: Any) -> Fault:
    """The same, whose message begins with name and value."""
    shown = shown or (str(value).lower() if isinstance(value, bool) else repr(value))
    return wrong(name, value, f"{name} is {shown}; {what}", **more)


def text_instead(name: str, value: str, what: str) -> dict[str, str]:
    """gRPC's parameters hold no lists and no objects: there, they are text."""
    return dict.fromkeys(GRPC, f"{name} is {value!r}; {what}")


PICTURE_FAULTS: Final = [
    Fault(f"a picture: {name}", Ask((content,)), message)
    for name, (content, message) in BAD.items()
]

QUESTION_FAULTS: Final = [
    Fault(
        "no picture",
        Ask((), prompt="x"),
        "input 'image' is missing",
        otherwise={
            "describe": "image is missing: send at least one, as -F image=@photo.jpg",
            "batch": "images is missing: send at least one, as -F images=@photo.jpg",
            "job": "images is missing: send at least one, as -F images=@photo.jpg",
        },
        not_in=("openai",),
    ),
    Fault(
        "nine pictures",
        Ask((PNG,) * 9),
        "prompt has 9 images; the limit is 8",
        otherwise={"v2": "input 'image' has 9 images a prompt; the limit is 8"},
    ),
    Fault(
        "200 pictures",
        Ask((PNG,) * 200),
        "prompt has 200 images; the limit is 8",
        otherwise={
            "v2": "input 'image' has 200 images a prompt; the limit is 8",
            "describe form": "the form cannot be read: Too many files. …",
        },
    ),
    Fault("a URL while fetching is off", Ask(("https://example.com/a.jpg",)), URL_REFUSED),
    Fault("a plain URL while fetching is off", Ask(("http://127.0.0.1/",)), URL_REFUSED),
    *(
        Fault(
            f"a {url.partition(':')[0]} URL",
            Ask((url,)),
            f"image is not a JPEG, PNG, WebP or GIF: it starts with '{url[:16]}' and has "
            f"{len(url)} bytes",
            otherwise={
                "generate": "input 'image' element 0 is not valid base64: …",
                "generate_stream": "input 'image' element 0 is not valid base64: …",
                "describe": f"image is not base64: character {url.index(':')} is ':', not one of "
                "A-Z a-z 0-9 + / =",
                "describe form": NO_FILE,
                "openai": f"messages[0].content[0].image_url.url is '{url}'; it must be a data: "
                "URL with base64, or an https URL",
            },
        )
        for url in ("file:///etc/passwd", "gopher://x/", "ftp://x/a.jpg", "unix:///run/a.sock")
    ),
    Fault(
        "base64 with another character",
        Ask(("AAAA!AAA",)),
        "image is not base64: character 4 is '!', not one of A-Z a-z 0-9 + / =",
        otherwise={"v2": "input 'image' element 0 is not valid base64: …"},
    ),
    Fault(
        "base64 cut short",
        Ask(("AAAAA",)),
        "image is not base64: its 5 characters are cut short or wrongly padded",
        otherwise={"v2": "input 'image' element 0 is not valid base64: …"},
    ),
    Fault(
        "base64 with padding inside",
        Ask(("AA==AAAA",)),
        "image is not base64: its 8 characters are cut short or wrongly padded",
        otherwise={"v2": "input 'image' element 0 is not valid base64: …"},
    ),
    Fault(
        "a data URL without base64",
        Ask(("data:image/png,abc",)),
        "image is a data: URL without ';base64'; only base64 is read",
        otherwise={
            "v2": "input 'image' element 0 is not valid base64: …",
            "generate": "image is 'data:image/png'; a data: URL must be base64",
            "generate_stream": "image is 'data:image/png'; a data: URL must be base64",
        },
    ),
    Fault(
        "a data URL without a comma",
        Ask(("data:image/png;base64",)),
        "image is a data: URL without a comma in its first 256 characters",
        otherwise={
            "v2": "input 'image' element 0 is not valid base64: …",
            "generate": "image is 'data:image/png;base64'; a data: URL must be base64",
            "generate_stream": "image is 'data:image/png;base64'; a data: URL must be base64",
        },
    ),
    Fault(
        "another model",
        Ask((PNG,), model="nope"),
        "model 'nope' is not served here; known: qwen3-vl",
        404,
        not_in=("describe",),
    ),
    Fault(
        "a model's name that is a path",
        Ask((PNG,), model="..%2f..%2fetc"),
        "model '..%2f..%2fetc' is not served here; known: qwen3-vl",
        404,
        not_in=("describe", "V2 JSON", "V2 binary", "generate", "generate_stream"),
    ),
    Fault(
        "a prompt of too many tokens",
        Ask((PNG,), prompt="word " * 6000),
        "prompt has 6057 tokens; this model takes at most 4095",
        otherwise={"completions": "prompt has 6002 tokens; this model takes at most 4095"},
    ),
    Fault(
        "a prompt of too many bytes",
        Ask((PNG,), prompt="x" * 40_000),
        "prompt has 40000 bytes of text; the limit is 32768",
    ),
    Fault(
        "half of a surrogate pair",
        Ask((PNG,), prompt="\ud800"),
        "the request body is not valid JSON: no low surrogate in string: …",
        otherwise=dict.fromkeys(
            ("V2 binary", *GRPC), "input 'prompt' element 0 is not UTF-8 (byte 0)"
        )
        | {"describe form": "the form cannot be read: prompt is not UTF-8 (byte 0)"},
    ),
    Fault(
        "two forms of answer",
        Ask((PNG,), parameters={"regex": "a", "choice": ["b"]}),
        "regex and choice are given together; an answer has one form",
    ),
    Fault(
        "pixel bounds that exclude each other",
        Ask((PNG,), parameters={"min_pixels": 5000, "max_pixels": 4000}),
        "min_pixels is 5000; it must be at most max_pixels, which is 4000",
    ),
    Fault(
        "a name that is no parameter",
        Ask((PNG,), parameters={"frobnicate": 1}),
        "unknown parameter 'frobnicate'; known: max_tokens, …",
        otherwise={
            "describe": "unknown field 'frobnicate'; known: image, …",
            "batch": "unknown field 'frobnicate'; known: images, …",
            "job": "unknown field 'frobnicate'; known: images, …",
        },
        not_in=("openai",),  # whose clients send whatever another server takes
    ),
]

TEXTS: Final = "it must be a string or a list of strings"
IDS: Final = "it must be a list of integers"
BIASES: Final = 'it must be an object of token ids, as {"42": -100}'
SEEDS: Final = "it must be from 0 to 9223372036854775807"
MAX_TOKENS: Final = "it must be from 1 to 1048576"
NOT_IN_TEXT: Final = ("gRPC", "gRPC stream", "describe form")

PARAMETER_FAULTS: Final = [
    parameter("max_tokens", 0, MAX_TOKENS),
    parameter("max_tokens", -1, MAX_TOKENS),
    parameter("max_tokens", 10**9, MAX_TOKENS),
    wrong("max_tokens", 10**6, "max_tokens is 1000000; this model's context has 4096 tokens"),
    parameter("max_tokens", -(2**63), MAX_TOKENS),
    parameter("max_tokens", 10**30, SIXTY_FOUR_BITS, shown="1e+30"),
    parameter("max_tokens", "ten", f"{NO_INTEGER}a string"),
    parameter("max_tokens", 1.5, f"{NO_INTEGER}a fraction"),
    parameter("max_tokens", True, f"{NO_INTEGER}a truth value"),
    parameter("max_tokens", [1], "it must be an integer, a single one", shown="a list of 1",
              otherwise=text_instead("max_tokens", "[1]", f"{NO_INTEGER}a string")),
    parameter("max_tokens", {}, "it must be an integer, a single one", shown="an object",
              otherwise=text_instead("max_tokens", "{}", f"{NO_INTEGER}a string")),
    parameter("min_tokens", -1, "it must be from 0 to …"),
    parameter("min_tokens", 300, "it must be from 0 to …"),
    parameter("temperature", -0.1, "it must be from 0.0 to 10.0"),
    parameter("temperature", 99.0, "it must be from 0.0 to 10.0"),
    parameter("temperature", "hot", f"{NO_NUMBER}a string"),
    parameter("temperature", True, f"{NO_NUMBER}a truth value"),
    parameter("temperature", float("nan"), "it must be from 0.0 to 10.0", otherwise={
        **dict.fromkeys(JSON, "the request body is not valid JSON: …"),
        "describe form": "temperature is 'NaN'; it must be a number, not a string"}),
    parameter("temperature", float("-inf"), "it must be from 0.0 to 10.0", otherwise={
        **dict.fromkeys(JSON, "the request body is not valid JSON: …"),
        "describe form": "temperature is '-Infinity'; it must be a number, not a string"}),
    parameter("top_p", 0.0, "it must be above 0 and at most 1.0"),
    parameter("top_p", 2.0, "it must be above 0 and at most 1.0"),
    parameter("top_k", -2, "it must be from 0 to 1048576"),
    parameter("top_k", 1.5, f"{NO_INTEGER}a fraction"),
    parameter("min_p", 2.0, "it must be from 0.0 to 1.0"),
    parameter("repetition_penalty", 0.0, "it must be above 0 and at most 10.0"),
    parameter("repetition_penalty", -1.0, "it must be above 0 and at most 10.0"),
    parameter("presence_penalty", 5.0, "it must be from -2.0 to 2.0"),
    parameter("frequency_penalty", -5.0, "it must be from -2.0 to 2.0"),
    parameter("logit_bias", [1], BIASES, shown="a list of 1",
              otherwise=text_instead("logit_bias", "[1]", BIASES)),
    parameter("logit_bias", "x", BIASES),
    wrong("logit_bias", {"x": 1}, 'logit_bias has the key \'x\'; keys are token ids, as "42"'),
    wrong("logit_bias", {"٣": 1}, 'logit_bias has the key \'٣\'; keys are token ids, as "42"'),
    wrong("logit_bias", {"-1": 1}, 'logit_bias has the key \'-1\'; keys are token ids, as "42"'),
    wrong("logit_bias", {"99999": 1},
          "logit_bias has token id 99999; this model's vocabulary has 1024 ids"),
    wrong("logit_bias", {"1": 1000},
          "logit_bias of token id 1 is 1000.0; it must be from -100.0 to 100.0"),
    wrong("logit_bias", {"1": "y"}, "logit_bias of '1' is 'y'; it must be a number, not a string"),
    wrong("logit_bias", {str(one): 0 for one in range(1025)},
          "logit_bias has 1025 token ids; the limit is 1024"),
    parameter("seed", -1, SEEDS),
    parameter("seed", 2**63, SEEDS),
    parameter("seed", 2**64, SIXTY_FOUR_BITS, shown="1.8446744073709552e+19"),
    parameter("seed", "s", f"{NO_INTEGER}a string"),
    wrong("stop", "", "stop holds an empty string; it must hold at least one character"),
    wrong("stop", ["a"] * 5, "stop has 5 strings; the limit is 4"),
    parameter("stop", [1], TEXTS, shown="a list of 1", not_in=NOT_IN_TEXT),
    parameter("stop", 5, TEXTS),
    parameter("stop", {}, TEXTS, shown="an object", not_in=NOT_IN_TEXT),
    parameter("stop_token_ids", "x", IDS),
    parameter("stop_token_ids", 5, IDS),
    wrong("stop_token_ids", ["a"],
          "stop_token_ids holds a value that is 'a'; it must be an integer, not a string"),
    wrong("stop_token_ids", [-1], "stop_token_ids has token id -1; ids begin at 0"),
    wrong("stop_token_ids", [99999],
          "stop_token_ids has token id 99999; this model's vocabulary has 1024 ids"),
    parameter("ignore_eos", "maybe", "it must be true or false"),
    parameter("ignore_eos", 1, "it must be true or false"),
    parameter("min_pixels", 0, "it must be at least 1"),
    parameter("min_pixels", 10**12, "it must be from 1 to 43008", not_in=("completions",)),
    parameter("max_pixels", -5, "it must be at least 1"),
    parameter("max_pixels", 10**12, "it must be from 1 to 43008", not_in=("completions",)),
    parameter("max_pixels", "all", f"{NO_INTEGER}a string"),
    parameter("json_schema", "{", "it must be a JSON object"),
    parameter("json_schema", 5, "it must be a JSON object"),
    wrong("json_schema", {"type": "nope"}, "json_schema cannot be followed: Invalid type: nope"),
    wrong("json_schema", {"$ref": "file:///etc/passwd"}, "json_schema cannot be followed: …"),
    wrong("regex", "(", "regex cannot be followed: …"),
    # What it costs shows only when it meets the tokens: a stream has begun by then.
    wrong("regex", "(a{1000}){1000}", "the answer's form is too complex to follow: …",
          not_in=("describe stream",)),
    parameter("regex", 5, "it must be a string", not_in=("describe form",)),
    wrong("choice", [], "choice is empty; it must hold at least one string"),
    parameter("choice", "x", "it must be a list of strings"),
    parameter("choice", [1], "it must be a list of strings", shown="a list of 1",
              otherwise=text_instead("choice", "[1]", "it must be a list of strings")),
    parameter("json_object", "x", "it must be true or false"),
    parameter("priority", 10, "it must be from 1, which goes first, to 9, or 0 for the default, 5",
              not_in=("openai",)),
    parameter("priority", "x", f"{NO_INTEGER}a string"),
]  # fmt: skip

FAULTS: Final = [*PICTURE_FAULTS, *QUESTION_FAULTS, *PARAMETER_FAULTS]
CASES: Final = [(fault, way) for fault in FAULTS for way in WAYS if fault.concerns(way)]
