"""The flags of `kubectl qwen3vl canary`, and what they mean together."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import urlsplit

from pydantic import ValidationError

from model.canary.errors import UsageError
from model.canary.gates import Gates
from model.canary.golden import Golden
from model.canary.plan import Plan
from model.canary.state import Changes, Header

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

PROMETHEUS_VARIABLE: Final = "QWEN3VL_PROMETHEUS_URL"
UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PLAN: Final = Plan()
EPILOG: Final = """\
exit status:
  0    done: promoted, or what was asked for is so
  1    the cluster does not answer, or not as it should
  2    the command line is wrong; nothing was changed
  3    rolled back or aborted
  4    refused: another run drives this canary, or its state does not allow it
  130  interrupted (143 by SIGTERM); the canary stays as it is, `canary watch` goes on with it
"""
COMMANDS: Final = {
    "start": "give a new version its first share of the traffic, and drive it to the end",
    "watch": "go on with a canary, wherever and however its last run ended",
    "status": "show canaries",
    "advance": "go one step further now, without hold or gates",
    "pause": "hold the weight; figures that fail still roll back",
    "resume": "go on after a pause",
    "abort": "give all traffic back to the stable one, and end",
    "promote": "make the stable one like the canary now, whatever the step",
}


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Roll a new version out by steps, judged by its figures, and back by itself.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_target(command, optional=name == "status")
        if name == "start":
            _add_start(command)
        if name in ("start", "watch", "promote"):
            _add_driver(command)
        if name == "status":
            command.add_argument("--watch", action="store_true", help="until it is over")
        if name == "abort":
            command.add_argument(
                "--reason", default="aborted by hand", metavar="TEXT", help="for the record"
            )
    return parser


def _add_target(command: argparse.ArgumentParser, *, optional: bool) -> None:
    command.add_argument(
        "target",
        nargs="?" if optional else None,
        type=_target,
        metavar="NAME",
        help="the HTTPRoute; or isvc/NAME for an InferenceService in Knative mode",
    )
    group = command.add_argument_group("the cluster, as kubectl has it")
    group.add_argument("-n", "--namespace", metavar="NAME")
    group.add_argument("--context", metavar="NAME")
    group.add_argument("--kubeconfig", metavar="FILE")
    command.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: an object a line"
    )


def _add_start(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the canary")
    group.add_argument(
        "--stable", metavar="NAME", help="InferenceService (default: the route's only one)"
    )
    group.add_argument(
        "--canary",
        metavar="NAME",
        help="InferenceService, made if need be (default: STABLE-canary)",
    )
    group.add_argument("--image", help="make it from the stable one, with this image")
    group.add_argument(
        "--set-env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="make it from the stable one, with this variable; may be repeated",
    )
    group.add_argument("--storage-uri", metavar="URI", help="… with the model from there")
    group.add_argument("--replicas", type=int, default=1, metavar="N", help="of one that is made")
    group.add_argument("--keep", action="store_true", help="leave it there when it is over")
    group.add_argument(
        "--ready-timeout", type=_seconds, default=1800.0, metavar="TIME", help="default: 30m"
    )
    group = command.add_argument_group("the plan")
    group.add_argument(
        "--steps", type=_steps, default=PLAN.steps, metavar="N,N,…", help="default: 5,25,50,100"
    )
    for flag, default, text in (
        ("--hold", PLAN.hold_seconds, "at least so long at each step (default: 5m)"),
        ("--interval", PLAN.interval_seconds, "between two evaluations (default: 30s)"),
        ("--deadline", None, "longer at one step rolls back (default: never)"),
    ):
        group.add_argument(flag, type=_seconds, default=default, metavar="TIME", help=text)
    group.add_argument(
        "--min-requests",
        type=int,
        default=PLAN.min_requests,
        metavar="N",
        help=f"fewer at a step prove nothing (default: {PLAN.min_requests})",
    )
    group.add_argument(
        "--max-failing",
        type=int,
        default=PLAN.max_failing,
        metavar="N",
        help=f"failing evaluations in a row that roll back (default: {PLAN.max_failing})",
    )
    group.add_argument(
        "--header",
        type=_header,
        metavar="NAME=VALUE",
        help="requests with this header go to the canary from the first step on",
    )
    group.add_argument(
        "--header-only", action="store_true", help="and no others: an A/B test, ended by hand"
    )
    group = command.add_argument_group("the gates; none switches one off")
    for flag, default, text in (
        ("--max-error-ratio", Gates().max_error_ratio, "0 to 1"),
        ("--max-error-increase", Gates().max_error_increase, "above stable's ratio"),
        ("--max-ttft-growth", Gates().max_ttft_growth, "p95, times stable's"),
        ("--max-itl-growth", Gates().max_itl_growth, "p95, times stable's"),
    ):
        group.add_argument(
            flag, type=_number, default=default, metavar="X", help=f"{text} (default: {default})"
        )
    for flag in ("--max-ttft", "--max-itl"):
        group.add_argument(flag, type=_seconds, metavar="TIME", help="p95, as 250ms")
    group = command.add_argument_group("known pictures")
    group.add_argument("--golden", metavar="FILE", help="JSON lines of image, prompt and answer")
    group.add_argument(
        "--golden-overlap",
        type=float,
        default=1.0,
        metavar="X",
        help="share of the words that must be the same (default: 1, the same text)",
    )
    group.add_argument(
        "--golden-wrong", type=int, default=0, metavar="N", help="so many may differ (default: 0)"
    )
    group.add_argument("--dry-run", action="store_true", help="check and show, change nothing")
    group.add_argument(
        "--detach", action="store_true", help="leave the driving to a `canary watch` elsewhere"
    )


def _add_driver(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what it asks")
    group.add_argument(
        "--prometheus-url",
        type=prometheus_url,
        default=None,
        metavar="URL",
        help="http(s)://…, or service://NAMESPACE/NAME:PORT through the API server "
        f"(default: ${PROMETHEUS_VARIABLE}, else that of the start)",
    )
    group.add_argument(
        "--golden-url",
        type=_http_url,
        metavar="URL",
        help="where the canary alone answers (default: its Service, through the API server)",
    )
    if not command.prog.endswith("start"):
        group.add_argument("--golden", metavar="FILE", help="where the golden set is here")


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan; raises UsageError."""
    try:
        gates = Gates(
            max_error_ratio=given.max_error_ratio,
            max_error_increase=given.max_error_increase,
            max_ttft_seconds=given.max_ttft,
            max_ttft_growth=given.max_ttft_growth,
            max_itl_seconds=given.max_itl,
            max_itl_growth=given.max_itl_growth,
        )
        return Plan(
            steps=given.steps,
            hold_seconds=given.hold,
            interval_seconds=given.interval,
            min_requests=given.min_requests,
            max_failing=given.max_failing,
            deadline_seconds=given.deadline,
            gates=gates,
        )
    except ValidationError as e:
        raise usage_error(e) from e


def changes_of(given: argparse.Namespace) -> Changes | None:
    """What a canary that is to be made has of its own; None for none. Raises UsageError."""
    env = dict(given.set_env)
    if given.image is None and given.storage_uri is None and not env:
        return None
    try:
        return Changes(
            image=given.image, storage_uri=given.storage_uri, env=env, replicas=given.replicas
        )
    except ValidationError as e:
        raise usage_error(e) from e


def golden_of(given: argparse.Namespace) -> Golden | None:
    """The golden set that is to be asked; None for none. Raises UsageError."""
    if given.golden is None:
        return None
    try:
        return Golden(
            path=os.path.abspath(given.golden),
            min_overlap=given.golden_overlap,
            max_wrong=given.golden_wrong,
            url=given.golden_url,
        )
    except ValidationError as e:
        raise usage_error(e) from e


def usage_error(error: ValidationError) -> UsageError:
    """What a field's rule says, by the name of its flag."""
    first = error.errors()[0]
    name = "-".join(str(part) for part in first["loc"][:1]).replace("_seconds", "")
    return UsageError(f"--{name.replace('_', '-')} is {first['input']!r}: {first['msg']}")


def _target(text: str) -> tuple[str, str]:
    """Kind and name; the kind is "route" or "service"."""
    kind, slash, name = text.rpartition("/")
    kinds = {"": "route", "httproute": "route", "isvc": "service", "inferenceservice": "service"}
    if kind.lower() not in kinds or not name or (slash and not kind):
        _refuse(f"{text!r} is neither an HTTPRoute's name nor isvc/NAME")
    return kinds[kind.lower()], name


def _steps(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        _refuse(f"{text!r} are no percentages, as in 5,25,50,100")
    return tuple(map(int, parts))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    if match is None:
        _refuse(f"{text!r} is no time, as in 250ms, 30s, 5m or 1h")
    return float(match[1]) * UNITS[match[2]]


def _number(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        _refuse(f"{text!r} is neither a number nor none")


def _pair(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        _refuse(f"{text!r} is no {what}, as in NAME=VALUE")
    return name, value


def _variable(text: str) -> tuple[str, str]:
    return _pair(text, "variable")


def _header(text: str) -> Header:
    name, value = _pair(text, "header")
    try:
        return Header(name=name, value=value)
    except ValidationError:
        _refuse(f"{text!r} is no header, as in NAME=VALUE")


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        _refuse(f"{text!r} is no http:// or https:// URL")
    return text.rstrip("/")


def prometheus_url(text: str) -> str:
    """A Prometheus' address; raises ArgumentTypeError."""
    if not text.startswith("service://"):
        return _http_url(text)
    if not re.fullmatch(r"service://[a-z0-9-]+/[a-z0-9-]+:[a-z0-9-]+", text):
        _refuse(f"{text!r} is no service://NAMESPACE/NAME:PORT")
    return text


def _refuse(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)


def parse_arguments(program: str, arguments: Seq[str]) -> argparse.Namespace:
    """The arguments, checked as far as they alone allow; exits as argparse does."""
    parser = build_parser(program)
    given = parser.parse_args(list(arguments))
    if given.command == "start":
        _check_start(parser, given)
    return given


def _check_start(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if given.header_only and given.header is None:
        parser.error("--header-only needs --header NAME=VALUE")
    if given.canary is None and changes_of(given) is None:
        parser.error(
            "name the canary's InferenceService with --canary, or say what it has of its own: "
            "--image, --set-env, --storage-uri"
        )
    if given.target[0] == "service" and (given.header or given.stable or given.canary):
        parser.error(
            "in Knative mode the canary is a revision of the same InferenceService: --stable, "
            "--canary and --header have no meaning"
        )
