"""The flags of `qwen3-vl describe`, and what they mean together.

A flag that becomes a field of the request has the field's own name; its value is judged by the
server, whose limits are not known here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence as Seq

API_KEY_VARIABLE: Final = "QWEN3_VL_API_KEY"
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS: Final = ("none", "bitsandbytes-8bit", "bitsandbytes-4bit")
STYLES: Final = ("brief", "detailed", "alt-text", "tags")
DEFAULT_CONCURRENCY: Final = 4

EPILOG: Final = f"""\
exit status:
  0    everything is described
  1    something is not: a file that cannot be read, a picture or a field the server refuses
  2    the command line is wrong; nothing was asked
  3    no model to ask: no server there, none ready within --wait, or one that cannot be loaded
  4    the server wants another API key
  130  interrupted    141  the reader of the output has gone

examples:
  qwen3-vl describe photo.jpg
  qwen3-vl describe --url http://localhost:8080 --stream --prompt 'How many?' photo.jpg
  qwen3-vl describe --url http://localhost:8080 --recursive photos --json --output answers.jsonl
  curl -s https://example.com/a.jpg | qwen3-vl describe --url http://localhost:8080 -

The API key is better given as {API_KEY_VARIABLE}: other users of the machine can read flags.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """A command line, checked.

    question: the request's fields but its pictures; url: of the server, None for in process
    model_arguments: what `qwen3-vl serve` would be given to load the same model
    skip_done: leave out what `output` holds an answer for already, and append to it
    """

    sources: tuple[str, ...]
    recursive: bool
    together: bool
    question: dict[str, Any]
    url: str | None
    api_key: str | None
    model_arguments: tuple[str, ...]
    concurrency: int
    timeout_seconds: float
    wait_seconds: float
    stream: bool
    json: bool
    output: Path | None
    skip_done: bool
    quiet: bool


def parse_options(arguments: Seq[str], environ: Mapping[str, str]) -> Options:
    """The options; exits as argparse does for --help and with status 2 for what is wrong."""
    parser = build_parser()
    given = parser.parse_args(list(arguments))
    _check_together(parser, given)
    fields = [name for group in QUESTION_FLAGS.values() for name in group]
    question = {name: getattr(given, name) for name in fields}
    model = {name: getattr(given, name) for name in MODEL_FLAGS}
    return Options(
        sources=tuple(given.pictures),
        recursive=given.recursive,
        together=given.together,
        question={name: value for name, value in question.items() if value is not None},
        url=given.url,
        api_key=_api_key(parser, given.api_key or environ.get(API_KEY_VARIABLE, "")),
        model_arguments=tuple(
            part for name, value in model.items() if value for part in (f"--{name}", value)
        ),
        concurrency=1 if given.stream else given.concurrency or DEFAULT_CONCURRENCY,
        timeout_seconds=given.timeout,
        wait_seconds=given.wait,
        stream=given.stream,
        json=given.json,
        output=given.output,
        skip_done=given.skip_done,
        quiet=given.quiet,
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser, its flags in groups."""
    parser = argparse.ArgumentParser(
        prog="qwen3-vl describe",
        usage="qwen3-vl describe [options] PICTURE …",
        description="Describe pictures, or answer a question about each of them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="a file, a glob, a folder (with --recursive), - for standard input, or an https URL, "
        "which the server fetches where it is allowed to",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="the pictures in folders")
    parser.add_argument(
        "--together", action="store_true", help="one answer about all pictures, in their order"
    )
    for title, flags in QUESTION_FLAGS.items():
        group = parser.add_argument_group(title)
        for name, options in flags.items():
            group.add_argument(f"--{name.replace('_', '-')}", dest=name, **options)
    _add_server_flags(parser.add_argument_group("a server to ask"))
    group = parser.add_argument_group("without --url: the model loaded into this process")
    for name, flag in MODEL_FLAGS.items():
        # As `qwen3-vl serve` spells them, and as the flags above.
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        group.add_argument(*spellings, dest=name, **flag)
    _add_output_flags(parser.add_argument_group("output"))
    return parser


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", type=_url, help="where it is, as http://localhost:8080")
    group.add_argument(
        "--api-key", metavar="KEY", help=f"sent as a bearer token (default: ${API_KEY_VARIABLE})"
    )
    group.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        help=f"pictures asked about at once (default: {DEFAULT_CONCURRENCY}; 1 with --stream)",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="the longest that one answer may take, busy servers' waits included (default: 300)",
    )
    group.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long a server that is not there or not ready is waited for (default: 10)",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-s", "--stream", action="store_true", help="print text as it comes")
    group.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line for each picture: path, and the answer or error and status",
    )
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead")
    group.add_argument(
        "--skip-done",
        action="store_true",
        help="leave out what the --output FILE of an earlier run with --json has answers for, and "
        "append to it",
    )
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no notices on standard error"
    )


def _check_together(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if given.stream and given.json:
        parser.error("--stream prints text as it comes, --json whole answers: give one of them")
    if given.stream and given.concurrency not in (None, 1):
        parser.error("--stream takes one picture after the other: --concurrency has no effect")
    if given.skip_done and not (given.json and given.output):
        parser.error("--skip-done needs --json and --output FILE, where it looks and appends")
    unused = [f"--{name}" for name in MODEL_FLAGS if getattr(given, name)]
    if given.url is not None and unused:
        parser.error(f"{', '.join(unused)}: no effect with --url, whose server has its model")


def _api_key(parser: argparse.ArgumentParser, text: str) -> str | None:
    # Files that keys are read from end with a line feed.
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        parser.error("the API key must be printable ASCII")
    return key or None


def _url(text: str) -> str:
    """A server's base URL, without a slash at its end; http where no scheme is given."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        _refuse(f"{text!r} is not an http:// or https:// URL")
    return url


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        _refuse(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        _refuse(f"{text!r} is not a number of seconds")
    return seconds


def _json_object(text: str) -> dict[str, Any]:
    """A JSON object, or @FILE that holds one."""
    try:
        value = json.loads(Path(text[1:]).read_text("utf-8") if text[:1] == "@" else text)
    except (OSError, ValueError) as e:
        _refuse(f"{text[:80]!r} cannot be read as JSON: {e}")
    if not isinstance(value, dict):
        _refuse(f"{text[:80]!r} is JSON, but no object")
    return value


def _refuse(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)


def _integer(text: str) -> dict[str, Any]:
    return {"type": int, "metavar": "N", "help": text}


def _number(text: str) -> dict[str, Any]:
    return {"type": float, "metavar": "X", "help": text}


# Title of the group → field of the request → its flag.
QUESTION_FLAGS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "question": {
        "prompt": {"metavar": "TEXT", "help": "what to ask (default: to describe the picture)"},
        "style": {"choices": STYLES, "help": "kind of description"},
        "language": {"metavar": "NAME", "help": 'of the answer: "German", or a tag as pt-BR'},
        "min_pixels": _integer("pixels a picture is enlarged to"),
        "max_pixels": _integer("pixels a picture is shrunk to: fewer are faster"),
        "priority": _integer("1 goes first, 9 last (default: 5)"),
    },
    "sampling": {
        "max_tokens": _integer("the longest answer"),
        "min_tokens": _integer("the shortest answer"),
        "temperature": _number("0 takes the likeliest token"),
        "top_p": _number("only the likeliest tokens that make up this probability"),
        "top_k": _integer("only so many of the likeliest tokens"),
        "min_p": _number("only tokens this likely, as a share of the likeliest"),
        "repetition_penalty": _number("over 1: against what prompt and answer hold already"),
        "presence_penalty": _number("over 0: against what the answer holds already"),
        "frequency_penalty": _number("over 0: the same, for each time it does"),
        "logit_bias": {
            "type": _json_object,
            "metavar": "JSON",
            "help": "token ids and what is added to their logits, as '{\"42\": -100}'",
        },
        "seed": _integer("the same seed gives the same answer"),
        "stop": {"action": "append", "metavar": "TEXT", "help": "end before it; may be repeated"},
        "stop_token_ids": {
            "action": "append",
            **_integer("end at this token; may be repeated"),
        },
        "ignore_eos": {
            "action": "store_const",
            "const": True,
            "help": "go on to --max-tokens",
        },
    },
    "form of the answer": {
        "json_object": {"action": "store_const", "const": True, "help": "a JSON object"},
        "json_schema": {
            "type": _json_object,
            "metavar": "JSON|@FILE",
            "help": "JSON of this schema",
        },
        "regex": {"metavar": "PATTERN", "help": "text that matches"},
        "choice": {"action": "append", "metavar": "TEXT", "help": "one of these; repeat it"},
    },
}
# As `qwen3-vl serve` has them; every QVL_* variable counts too.
MODEL_FLAGS: Final[dict[str, dict[str, Any]]] = {
    "model_dir": {"metavar": "DIR", "help": "checkpoint folder (default: the bundled model)"},
    "model_id": {"metavar": "NAME", "help": "name on the model hub"},
    "model_revision": {"metavar": "NAME", "help": "branch, tag or commit on the hub"},
    "dtype": {"choices": DTYPES, "help": "number format (default: auto)"},
    "quantization": {"choices": QUANTIZATIONS, "help": "8 or 4 bits for the decoder layers"},
}
