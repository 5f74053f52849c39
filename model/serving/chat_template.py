"""A checkpoint's chat template: read from its files, rendered in a sandbox as transformers does.

Knows the template language. Knows no tokens and no pictures.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.checkpoint import CheckpointError
from model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2 import nodes
    from jinja2.parser import Parser

NAMED_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training, as its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type jinja2 gives it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A checkpoint's chat template, rendered as transformers' apply_chat_template does.

    Raises CheckpointError if the template is not valid.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._variables = dict(variables or {})
        self._template = _compile(source)

    @classmethod
    def load(cls, path: Path) -> ChatTemplate:
        """Read it from chat_template.jinja, chat_template.json or tokenizer_config.json.

        Raises CheckpointError if none of them has one.
        """
        config = _read_json(path / "tokenizer_config.json")
        if (path / "chat_template.jinja").is_file():
            source: Any = (path / "chat_template.jinja").read_text(encoding="utf-8")
        else:
            found = _read_json(path / "chat_template.json").get("chat_template")
            source = found or config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if not isinstance(source, str):
            raise CheckpointError(f"{path} has no chat template: chat_template.jinja is missing")
        return cls(source, _named_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as one text. Raises InvalidRequest if the template refuses it."""
        variables = self._variables | {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except TemplateError as e:
            raise InvalidRequest(f"the chat template refuses these messages: {e}") from e
        except (TypeError, ValueError, LookupError, AttributeError) as e:
            raise InvalidRequest("the chat template cannot render these messages") from e


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as e:
        raise CheckpointError(f"the chat template is not valid: {e}") from e


def _tojson(
    value: Any,  # noqa: ANN401 - whatever the template holds
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it; jinja2's own filter escapes < and > for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{file} is not readable JSON: {e}") from e
    return content if isinstance(content, dict) else {}


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """eos_token and the like, which some templates write by name."""
    values = {name: config.get(name) for name in NAMED_TOKENS}
    return {
        name: value["content"] if isinstance(value, dict) else str(value)
        for name, value in values.items()
        if value is not None
    }
