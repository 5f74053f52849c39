"""Every knob of the page: default and reason, from flags and `QWEN3VL_UI_*`, the flag winning.

Not `QVL_*`: the server refuses variables under its prefix that it does not know.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq


class SettingsError(Exception):
    """Flags or variables that make no settings; the text is for the operator."""


def _http_url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("it must be an address like http://localhost:8080")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("it must hold no user, query or fragment")
    return text.rstrip("/")


def _root_path(text: str) -> str:
    if text.startswith(("http://", "https://")):
        return _http_url(text)
    if text and not text.startswith("/"):
        raise ValueError("it must begin with / or be a whole address")
    return text.rstrip("/")


class PageSettings(BaseSettings):
    """The Qwen3-VL page: pictures in, descriptions out, in a browser."""

    model_config = SettingsConfigDict(
        env_prefix="QWEN3VL_UI_", frozen=True, extra="forbid", cli_kebab_case=True
    )

    api: Annotated[str, AfterValidator(_http_url)] = Field(
        "http://localhost:8080", description="address of the server, as this process reaches it"
    )
    public_api: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None,
        description="address of the server in the requests that people copy, where theirs differs "
        "(default: --api)",
    )
    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(7860, ge=1, le=65535, description="port to listen on")
    root_path: Annotated[str, AfterValidator(_root_path)] = Field(
        "",
        description="path of the page behind a gateway, like /ui, whether or not the gateway takes "
        "it off; a whole address where the gateway tells neither host nor scheme",
    )
    max_upload_mib: int = Field(
        32, ge=1, description="MiB of one picture; the server's own limit is usually lower"
    )
    answer_seconds: float = Field(
        120.0,
        gt=0,
        description="how long the server may say nothing at all; while one waits, it sends "
        "keep-alives every 15 s",
    )

    @property
    def shown_api(self) -> str:
        """The server's address in copied requests."""
        return self.public_api or self.api

    @property
    def path_prefix(self) -> str:
        """The path of root_path, without its address."""
        return urllib.parse.urlsplit(self.root_path).path


def parse_settings(arguments: Seq[str]) -> PageSettings:
    """The settings; raises SettingsError, and exits as argparse does for --help."""
    try:
        return CliApp.run(PageSettings, cli_args=list(arguments))
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"])).replace("_", "-")
        raise SettingsError(f"--{name} is {first['input']!r}: {first['msg']}") from e
