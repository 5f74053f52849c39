"""The server's command line: KServe's own flags, and every setting as `--section.name`.

KServe's parser is the parent of ours, so a ServingRuntime's arguments work as they are. Its flags
that mean nothing here are taken and named in a warning.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kserve import model_server
from pydantic import ValidationError
from pydantic_settings import SettingsError as UnreadableVariable

from model.settings import (
    ENV_PREFIX,
    Section,
    Settings,
    UnknownSetting,
    refuse_unknown_variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Sequence as Seq

# KServe's flag (and its huggingfaceserver's) → our setting.
ALIASES = {
    "model_name": ("model", "names"),
    "model_dir": ("model", "dir"),
    "model_id": ("model", "id"),
    "model_revision": ("model", "revision"),
    "dtype": ("model", "dtype"),
    "quantization": ("model", "quantization"),
    "http_port": ("server", "http_port"),
    "grpc_port": ("server", "grpc_port"),
    "ui_url": ("server", "ui_url"),
    "timeout_keep_alive": ("server", "keep_alive_seconds"),
    "grpc_max_receive_message_length": ("request", "max_body_bytes"),
}
# Read by KServe itself, or without a meaning that a user could miss.
SILENT = frozenset({"configure_logging", "enable_docs_url", "enable_latency_logging"})


class SettingsError(Exception):
    """Arguments or environment that make no settings; its text is for the operator."""


def build_parser() -> argparse.ArgumentParser:
    """KServe's flags, then ours."""
    parser = argparse.ArgumentParser(
        prog="qwen3-vl serve",
        parents=[model_server.parser],
        conflict_handler="resolve",
        description="Serve a Qwen3-VL checkpoint over V2 (HTTP and gRPC), OpenAI's protocol and "
        "/api/v1/describe.",
        epilog=f"Every --section.name is also the variable {ENV_PREFIX}SECTION__NAME.",
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name", action="extend", nargs="+", help="names clients may use (default: qwen3-vl)"
    )
    # KServe's own default, a string, would be extended letter by letter.
    parser.set_defaults(model_name=None)
    group.add_argument("--model_dir", help="checkpoint folder (default: the bundled model)")
    group.add_argument("--model_id", help="name on the model hub")
    group.add_argument("--model_revision", help="branch, tag or commit on the hub")
    group.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"])
    group.add_argument(
        "--quantization",
        "-q",
        choices=["none", "bitsandbytes", "bitsandbytes-8bit", "bitsandbytes-4bit"],
        help="8 or 4 bits for the decoder layers; bitsandbytes means 4, as in vLLM",
    )
    group.add_argument("--ui_url", help="address of the page, where /ui leads")
    for section, name, description, default in _fields():
        kebab = name.replace("_", "-")
        spellings = dict.fromkeys([f"--{section}.{kebab}", f"--{section}.{name}"])
        parser.add_argument(
            *spellings,
            dest=f"{section}.{name}",
            metavar="VALUE",
            action="extend" if isinstance(default, tuple) else "store",
            nargs="+" if isinstance(default, tuple) else None,
            help=f"{description} (default: {default})".replace("%", "%%"),
        )
    return parser


def parse_settings(
    arguments: Seq[str], environ: Mapping[str, str]
) -> tuple[Settings, tuple[str, ...]]:
    """The settings, and the KServe flags that were given but mean nothing here.

    Raises SettingsError; exits as argparse does for --help and for flags it does not know.
    """
    parser = build_parser()
    given = vars(parser.parse_args(list(arguments)))
    values: dict[str, dict[str, Any]] = {}
    unused: list[str] = []
    for name, value in given.items():
        section, _, field = name.partition(".")
        if field:
            target: tuple[str, str] | None = (section, field)
        else:
            target = ALIASES.get(name)
        if value is None or (not field and value == model_server.parser.get_default(name)):
            continue
        if target is not None:
            # `--server.http_port` is `--http_port` too; the long form is read later and wins.
            values.setdefault(target[0], {})[target[1]] = value
        elif name not in SILENT:
            unused.append(f"--{name}")
    if int(given.get("workers") or 1) > 1:
        raise SettingsError(
            f"--workers is {given['workers']}; the limit is 1, as each would hold a copy of the "
            "weights: run more replicas instead"
        )
    try:
        refuse_unknown_variables(environ)
        sections: dict[str, Any] = values
        return Settings(**sections), tuple(unused)
    except UnknownSetting as e:
        raise SettingsError(str(e)) from e
    except UnreadableVariable as e:
        raise SettingsError(
            f"{e}; several values in one variable are JSON, as {ENV_PREFIX}MODEL__NAMES='[\"a\"]'"
        ) from e
    except ValidationError as e:
        raise SettingsError(_explain(e)) from e


def _fields() -> Iterator[tuple[str, str, str, object]]:
    for section, info in Settings.model_fields.items():
        assert isinstance(info.default, Section)
        for name, field in type(info.default).model_fields.items():
            yield section, name, field.description or "", field.default


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"--{where} is {first['input']!r}: {first['msg']}"
