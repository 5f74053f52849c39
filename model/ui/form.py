"""The page's parts and where they stand; what they do is in handlers.py."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import gradio as gr

from model.ui import view
from model.ui.ask import MAX_PICTURES, OPTIONS
from model.ui.static import static

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq


STYLES: Final = [
    ("Plain", ""),
    ("Brief", "brief"),
    ("Detailed", "detailed"),
    ("Alt text", "alt-text"),
    ("Tags", "tags"),
]
LANGUAGES: Final = [
    ("As in the prompt", ""),
    "English",
    "Deutsch",
    "Español",
    "Français",
    "Italiano",
    "Português",
    "Türkçe",
    "Русский",
    "العربية",
    "हिन्दी",
    "中文",
    "日本語",
    "한국어",
]

EMPTY_ANSWER: Final = "The description appears here, word by word."


@dataclass(frozen=True)
class Form:
    """Every part that a function reads or writes; options by the name of their parameter."""

    pictures: Any
    prompt: Any
    style: Any
    language: Any
    each: Any
    options: dict[str, Any]
    key: Any
    describe: Any
    stop: Any
    health: Any
    answer: Any
    curl: Any
    python: Any
    history: Any
    entries: Any
    forget: Any


def lay_out(samples: Seq[str]) -> Form:
    """Make the parts inside the gr.Blocks that is open.

    samples: file names under samples/ to try the page with
    """
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="head", equal_height=True):
        gr.HTML(
            f'<div class="brand">{static("icon.svg")}<h1>Qwen3-VL</h1></div>',
            apply_default_css=False,
        )
        parts["health"] = gr.HTML(elem_id="health", apply_default_css=False)
        gr.HTML(static("mode.html"), apply_default_css=False)
    with gr.Row(elem_id="columns", equal_height=False):
        with gr.Column(elem_id="ask", min_width=320):
            parts |= _ask_parts(samples)
        with gr.Column(elem_id="told", min_width=320):
            parts |= _told_parts()
    return Form(**parts)


def _ask_parts(samples: Seq[str]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    parts["pictures"] = gr.HTML(
        value=[],
        html_template=static("pictures.html") + _samples(samples),
        js_on_load=static("pictures.js"),
        elem_id="pictures",
        apply_default_css=False,
        max_pictures=MAX_PICTURES,
    )
    parts["each"] = gr.Radio(
        [("One answer about all of them", False), ("An answer for each", True)],
        value=False,
        label="Several pictures",
        elem_id="several",
    )
    parts["prompt"] = gr.Textbox(
        label="Prompt", placeholder="Describe this image.", lines=2, elem_id="prompt"
    )
    parts["style"] = gr.Radio(STYLES, value="", label="Style", elem_id="style")
    parts["language"] = gr.Dropdown(
        LANGUAGES, value="", label="Language", allow_custom_value=True, elem_id="language"
    )
    with gr.Row(elem_id="buttons"):
        parts["describe"] = gr.Button("Describe", variant="primary", size="lg", elem_id="describe")
        parts["stop"] = gr.Button("Stop", size="lg", elem_id="stop", visible=False)
    with gr.Accordion("Sampling", open=False, elem_id="sampling"):
        gr.HTML(
            '<p class="help">Left empty, the model\'s own values count.</p>',
            apply_default_css=False,
        )
        with gr.Row():
            parts["options"] = {
                option.name: gr.Textbox(
                    label=option.label, info=option.info, min_width=150, elem_id=option.name
                )
                for option in OPTIONS
            }
    with gr.Accordion("API key", open=False, elem_id="access"):
        parts["key"] = gr.Textbox(
            type="password",
            label="API key",
            info="kept in this tab alone, sent with each request",
            elem_id="key",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        )
    return parts


def _told_parts() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Column(elem_id="answer-card"):
        gr.HTML("<h2>Answer</h2>", apply_default_css=False)
        parts["answer"] = gr.HTML(
            view.hint_html(EMPTY_ANSWER), elem_id="answer", apply_default_css=False
        )
    with gr.Accordion("The same request from your code", open=False, elem_id="code"):
        with gr.Tab("curl"):
            parts["curl"] = gr.HTML(
                view.hint_html("Describe a picture first."), apply_default_css=False
            )
        with gr.Tab("Python"):
            parts["python"] = gr.HTML(
                view.hint_html("Describe a picture first."), apply_default_css=False
            )
    with gr.Column(elem_id="history"):
        gr.HTML("<h2>This session</h2>", apply_default_css=False)
        parts["entries"] = gr.HTML(
            view.history_html([]),
            elem_id="entries",
            apply_default_css=False,
            js_on_load="""
                element.addEventListener("click", (event) => {
                  const entry = event.target.closest("[data-restore]");
                  if (entry) trigger("restore", { entry: entry.dataset.restore });
                });
            """,
        )
        parts["forget"] = gr.Button("Clear", size="sm", elem_id="forget", elem_classes="small")
    parts["history"] = gr.State([])
    return parts


def _samples(names: Seq[str]) -> str:
    buttons = "".join(
        f'<button type="button" data-sample="samples/{escape(name)}">'
        f'<img src="samples/{escape(name)}" alt="Example {number}"></button>'
        for number, name in enumerate(names, start=1)
    )
    return f'<div class="samples"><p>No picture at hand? Take one of these.</p>{buttons}</div>'
