"""Answers, history and health as HTML. Whatever a model or a person wrote is escaped here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from markdown_it import MarkdownIt

from model.ui.answers import Answer, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from markdown_it.token import Token

    from model.ui.api import Health
    from model.ui.ask import Ask, Picture

# No HTML of the model's, no pictures from elsewhere, and no links: a picture can hold any address.
MARKDOWN: Final = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["image", "link", "autolink", "reference"])
)

PROGRESS: Final = {
    Phase.WAITING: "Waiting",
    Phase.SENT: "Sending",
    Phase.READING: "Looking",
    Phase.WRITING: "Writing",
    Phase.DONE: "Done",
    Phase.STOPPED: "Stopped",
    Phase.FAILED: "Failed",
}
ENDINGS: Final = {"length": "cut at the longest answer", "cancelled": "cancelled by the server"}
HEALTH: Final = {
    "ready": "ready",
    "loading": "loading its model",
    "draining": "shutting down",
    "failed": "out of order",
    "unreachable": "not reachable",
}
MAX_TITLE: Final = 90


def health_html(health: Health) -> str:
    """The server's name and state, for the head of the page."""
    text = escape(HEALTH.get(health.state, health.state))
    model = f'<span class="model">{escape(health.model)}</span>' if health.model else "Server"
    mood = "good" if health.state == "ready" else "bad"
    return f'<p class="health {mood}" role="status">{model} <span>{text}</span></p>'


def answers_html(ask: Ask, answers: Seq[Answer]) -> str:
    """What was asked and what came: one text, or a table with a row for each picture."""
    if ask.each:
        return _table(ask, answers)
    [answer] = answers
    return (
        f"{_status(answer)}"
        f"{_text(answer)}"
        f"{_figures(answer)}"
        f"{_copy_button(answer.text, 'Copy text') if answer.text and answer.ended else ''}"
    )


def history_html(entries: Seq[tuple[Ask, Seq[Answer]]]) -> str:
    """A button for each request of this session, the newest first; its number is its place."""
    if not entries:
        return ""
    rows = [_entry(index, ask, answers) for index, (ask, answers) in enumerate(entries)]
    return f'<ol class="entries">{"".join(reversed(rows))}</ol>'


def code_html(code: str, name: str) -> str:
    """Lines to copy."""
    return (
        f'<pre class="code" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<code>{escape(code)}</code></pre>"
        f"{_copy_button(code, f'Copy {name}')}"
    )


def _status(answer: Answer) -> str:
    """One line that a screen reader hears when it changes."""
    detail = ""
    if answer.phase is Phase.READING and (tokens := answer.usage.get("image_tokens")):
        detail = f" at {tokens} image tokens"
    if answer.phase is Phase.DONE:
        detail = ", " + ENDINGS[answer.finish_reason] if answer.finish_reason in ENDINGS else ""
    role = "alert" if answer.phase is Phase.FAILED else "status"
    said = escape(answer.error) if answer.error else f"{PROGRESS[answer.phase]}{detail}"
    return f'<p class="status {answer.phase}" role="{role}">{said}</p>'


def _text(answer: Answer) -> str:
    # A reader is told the whole text once: each piece by itself would be a stammer.
    busy = "false" if answer.ended else "true"
    body = MARKDOWN.render(answer.text) if answer.text else ""
    if not answer.text and not answer.ended:
        body = '<div class="skeleton" aria-hidden="true"><i></i><i></i><i></i></div>'
    return (
        f'<div class="text {answer.phase}" aria-live="polite" aria-busy="{busy}" dir="auto">'
        f"{body}</div>"
    )


def _figures(answer: Answer) -> str:
    pairs = [*_tokens(answer), *_timings(answer), *_sizes(answer)]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="figures">{items}</dl>'


def _tokens(answer: Answer) -> list[tuple[str, str]]:
    usage = answer.usage
    pairs = []
    if "prompt_tokens" in usage:
        pairs.append(("Prompt", f"{usage['prompt_tokens']} tokens"))
    if "completion_tokens" in usage:
        pairs.append(("Answer", f"{usage['completion_tokens']} tokens"))
    if (rate := answer.tokens_per_second) is not None:
        pairs.append(("Speed", f"{rate:.0f} tokens/s"))
    return pairs


def _timings(answer: Answer) -> list[tuple[str, str]]:
    names = (
        ("Queue", "queue_ms"),
        ("First text", "first_text_ms"),
        ("Total", "total_ms"),
    )
    return [
        (label, duration(answer.timings[name])) for label, name in names if name in answer.timings
    ]


def _sizes(answer: Answer) -> list[tuple[str, str]]:
    def size(image: object) -> str:
        match image:
            case {"width": w, "height": h, "seen_width": sw, "seen_height": sh}:
                return f"{w} × {h}, seen as {sw} × {sh}"
            case _:
                return "?"

    label = "Picture" if len(answer.images) == 1 else "Picture {}"
    return [
        (label.format(number), size(image)) for number, image in enumerate(answer.images, start=1)
    ]


def plain_text(markdown: str) -> str:
    """The words of a text, without its marks, on one line."""
    blocks = [token.children for token in MARKDOWN.parse(markdown) if token.children]
    return " ".join("".join(map(_plain, block)) for block in blocks)


def _plain(part: Token) -> str:
    return " " if part.type in {"softbreak", "hardbreak"} else part.content


def duration(milliseconds: float) -> str:
    """A time as people read it: 0.2 ms, 48 ms, 1.2 s."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _table(ask: Ask, answers: Seq[Answer]) -> str:
    num_done = sum(answer.phase is Phase.DONE for answer in answers)
    ended = all(answer.ended for answer in answers)
    rows = "".join(
        _row(picture, answer) for picture, answer in zip(ask.pictures, answers, strict=True)
    )
    save = '<button type="button" class="small" data-save-table>Save as CSV</button>'
    return (
        f'<p class="status {"done" if ended else "writing"}" role="status">'
        f"{num_done} of {len(answers)} pictures described</p>"
        '<div class="table" tabindex="0" role="region" aria-label="Answers">'
        "<table><thead><tr><th>Picture</th><th>Answer</th><th>Tokens</th><th>Time</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"{save if ended else ''}"
    )


def _row(picture: Picture, answer: Answer) -> str:
    said = MARKDOWN.render(answer.text)
    if answer.phase is not Phase.DONE:
        said += f"<p>{escape(answer.error or PROGRESS[answer.phase])}</p>"
    tokens = answer.usage.get("completion_tokens", "")
    time = duration(answer.timings["total_ms"]) if "total_ms" in answer.timings else ""
    return (
        f'<tr class="{answer.phase}"><th scope="row">{_thumbnail(picture)}'
        f"<span>{escape(picture.name)}</span></th>"
        f'<td><div class="text" dir="auto">{said}</div></td><td>{tokens}</td><td>{time}</td></tr>'
    )


def _entry(index: int, ask: Ask, answers: Seq[Answer]) -> str:
    shown = ask.pictures[0]
    more = f" and {len(ask.pictures) - 1} more" if len(ask.pictures) > 1 else ""
    said = next((plain_text(answer.text) or answer.error for answer in answers), "")
    title = said[:MAX_TITLE] + ("…" if len(said) > MAX_TITLE else "")
    return (
        f'<li><button type="button" data-restore="{index}">{_thumbnail(shown)}'
        f"<span><strong>{escape(title or 'Stopped')}</strong>"
        f"<small>{escape(shown.name)}{more}"
        f"{' · ' + escape(ask.prompt.strip()[:MAX_TITLE]) if ask.prompt.strip() else ''}</small>"
        "</span></button></li>"
    )


def _thumbnail(picture: Picture) -> str:
    return f'<img src="{escape(picture.url)}" alt="" loading="lazy">'


def _copy_button(text: str, label: str) -> str:
    return (
        f'<button type="button" class="small" data-copy="{escape(text)}">{escape(label)}</button>'
    )


def hint_html(text: str) -> str:
    """What stands where nothing has come yet."""
    return f'<p class="hint">{escape(text)}</p>'
