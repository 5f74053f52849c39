"""What happens when somebody uses the page: form in, frames of HTML out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from model.ui import snippets, view
from model.ui.answers import Answer, follow
from model.ui.api import Api
from model.ui.ask import MAX_PICTURES, OPTIONS, Ask, Picture
from model.ui.form import Form

# Requests kept for going back to, for one tab: the oldest go first.
MAX_HISTORY = 50

# What somebody else did wrong is no error of ours to log.
QUIETLY: dict[str, Any] = {"print_exception": False}

Entry = tuple[Ask, tuple[Answer, ...]]


class Handlers:
    """The page's functions, for all its visitors.

    What belongs to one visitor's tab is in Gradio's state or under the session's hash. A key comes
    with each request as the other fields do; nothing here keeps it.
    """

    def __init__(self, api: Api, shown_api: str, form: Form) -> None:
        self._api = api
        self._shown_api = shown_api
        self._form = form
        self._stops: dict[str, asyncio.Event] = {}

    async def describe(
        self, values: dict[Any, Any], request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        """Ask the server, and show the answers while they grow."""
        form = self._form
        ask, key = self._ask(values), (values[form.key] or "").strip()
        if not ask.pictures:
            yield {form.answer: view.hint_html("Add a picture first.")}
            return
        code = self._code(ask, with_key=bool(key))
        yield {**code, form.describe: gr.update(visible=False), form.stop: gr.update(visible=True)}
        answers: tuple[Answer, ...] = ()
        with self._stoppable(str(request.session_hash)) as stop:
            async for answers in follow(self._api, ask.calls(), key, stop):
                yield {form.answer: view.answers_html(ask, answers)}
        history = [*values[form.history], (ask, answers)][-MAX_HISTORY:]
        yield {
            form.history: history,
            form.entries: view.history_html(history),
            form.describe: gr.update(visible=True),
            form.stop: gr.update(visible=False),
        }

    def stop(self, request: gr.Request) -> None:
        """Cancel what this visitor's tab waits for, at the server too."""
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    @contextlib.contextmanager
    def _stoppable(self, session: str) -> Iterator[asyncio.Event]:
        """What `stop` sets for this tab, which asks one thing at a time."""
        stop = self._stops[session] = asyncio.Event()
        try:
            yield stop
        finally:
            self._stops.pop(session, None)

    def restore(self, history: list[Entry], event: gr.EventData) -> dict[Any, Any]:
        """Fill the form as it was for an earlier request, and show its answer again."""
        form = self._form
        ask, answers = history[int(event._data["entry"])]
        return {
            form.pictures: [{"path": str(one.path), "name": one.name} for one in ask.pictures],
            form.prompt: ask.prompt,
            form.style: ask.style,
            form.language: ask.language,
            form.each: ask.each,
            **{form.options[option.name]: ask.options[option.name] for option in OPTIONS},
            form.answer: view.answers_html(ask, answers),
            **self._code(ask, with_key=False),
        }

    def forget(self) -> dict[Any, Any]:
        """Drop this tab's history."""
        return {self._form.history: [], self._form.entries: view.history_html([])}

    async def health(self, key: str | None) -> str:
        """The server's name and state."""
        return view.health_html(await self._api.health((key or "").strip()))

    def _ask(self, values: Mapping[Any, Any]) -> Ask:
        form = self._form
        pictures = _pictures(values[form.pictures])
        return Ask(
            pictures=pictures,
            prompt=values[form.prompt] or "",
            style=values[form.style] or "",
            language=values[form.language] or "",
            each=bool(values[form.each]) and len(pictures) > 1,
            options={name: values[field] or "" for name, field in form.options.items()},
        )

    def _code(self, ask: Ask, *, with_key: bool) -> dict[Any, Any]:
        calls = ask.calls()
        curl = snippets.curl(self._shown_api, calls, with_key=with_key)
        python = snippets.python(self._shown_api, calls, with_key=with_key)
        return {
            self._form.curl: view.code_html(curl, "curl"),
            self._form.python: view.code_html(python, "Python"),
        }


def _pictures(files: object) -> tuple[Picture, ...]:
    """The value of the picture field, which anybody can send; raises gr.Error for a wrong one."""
    match files:
        case None:
            return ()
        case list() if len(files) <= MAX_PICTURES:
            return tuple(_picture(file) for file in files)
        case _:
            raise gr.Error(f"this page takes {MAX_PICTURES} pictures at once", **QUIETLY)


def _picture(file: object) -> Picture:
    match file:
        case {"path": str(path), "name": str(name)}:
            kept = Path(path).resolve()
        case _:
            raise gr.Error("a picture is a path and a name", **QUIETLY)
    if not kept.is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("a picture must be uploaded to this page", **QUIETLY)
    return Picture(kept, name)
