"""The request just made, as lines that run when pasted beside its pictures."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.ui.ask import Call, Picture

ROUTE = "/api/v1/describe"

# What curl's -F takes as it stands; in other text @, < and ; have a meaning of their own.
PLAIN = re.compile(r"[\w.+-]+")


def curl(api: str, calls: Seq[Call], *, with_key: bool) -> str:
    """Shell lines; the key is $API_KEY there."""
    return "\n\n".join(_curl(api, call, with_key=with_key) for call in calls) + "\n"


def python(api: str, calls: Seq[Call], *, with_key: bool) -> str:
    """A script for Python with requests; the key is the variable API_KEY there."""
    names = [[picture.name for picture in call.pictures] for call in calls]
    key = 'headers={"Authorization": "Bearer " + os.environ["API_KEY"]}, ' if with_key else ""
    return (
        ("import os\n\n" if with_key else "")
        + "import requests\n\n"
        + f"fields = {_literal(calls[0].fields)}\n"
        + f"for names in {names!r}:\n"
        + '    files = [("image", (name, open(name, "rb"))) for name in names]\n'
        + "    answer = requests.post(\n"
        + f"        {api + ROUTE!r}, {key}data=fields, files=files, timeout=300\n"
        + "    )\n"
        + "    answer.raise_for_status()\n"
        + '    print(answer.json()["description"])\n'
    )


def _literal(fields: Seq[tuple[str, str]]) -> str:
    inner = "".join(f"    {name!r}: {text!r},\n" for name, text in fields)
    return f"{{\n{inner}}}" if inner else "{}"


def _curl(api: str, call: Call, *, with_key: bool) -> str:
    words = ["curl"]
    if with_key:
        words.append('-H "Authorization: Bearer $API_KEY"')
    words += [f"-F {shlex.quote('image=@' + _file_name(picture))}" for picture in call.pictures]
    words += [_field(name, text) for name, text in call.fields]
    words.append(shlex.quote(api + ROUTE))
    return " \\\n  ".join(words)


def _file_name(picture: Picture) -> str:
    """A file's name as curl's -F wants it: in quotes where it holds what divides its parts."""
    if PLAIN.fullmatch(picture.name):
        return picture.name
    escaped = picture.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _field(name: str, text: str) -> str:
    flag = "-F" if PLAIN.fullmatch(text) else "--form-string"
    return f"{flag} {shlex.quote(f'{name}={text}')}"
