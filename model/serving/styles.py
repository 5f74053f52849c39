"""What `style` and `language` ask of the model, in words; and tags read back out of its text.

Where the client asks nothing itself, the style's own question is asked. Those of brief, detailed
and tags are wordings that the bundled model was trained on, or close to them; it knows neither
alt text nor any language but English, and answers in the words of its world all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from model.errors import InvalidRequest
from model.serving.parameters import shown

MAX_LANGUAGE_LENGTH: Final = 64
# Words in any script, as "Brazilian Portuguese", "中文", "Norwegian (Bokmål)", "zh-Hant".
LANGUAGE: Final = re.compile(r"[\w'’(),. -]+")
LANGUAGE_TAG: Final = re.compile(r"([a-z]{2})((?:-[a-z0-9]{2,8})*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Style:
    """A kind of answer.

    question: asked when the client asks nothing; addition: follows what the client asks
    max_tokens: completion tokens when the client names none
    """

    question: str
    addition: str
    max_tokens: int


STYLES: Final[dict[str, Style]] = {
    "brief": Style(
        "Describe this image briefly, in one sentence.", "Answer briefly, in one sentence.", 96
    ),
    "detailed": Style("Describe this image in detail.", "Answer in detail.", 1024),
    "alt-text": Style(
        "Write alt text for this image, in one sentence.",
        "Answer as alt text: one sentence for somebody who cannot see the image.",
        128,
    ),
    "tags": Style("List tags for this image.", "Answer with tags alone, separated by commas.", 128),
}
# ISO 639-1; a model follows a name more surely than a code.
_LANGUAGES: Final = """\
ar Arabic, bg Bulgarian, bn Bengali, ca Catalan, cs Czech, da Danish, de German, el Greek,
en English, es Spanish, et Estonian, fa Persian, fi Finnish, fr French, he Hebrew, hi Hindi,
hr Croatian, hu Hungarian, id Indonesian, it Italian, ja Japanese, ko Korean, lt Lithuanian,
lv Latvian, ms Malay, nb Norwegian Bokmål, nl Dutch, nn Norwegian Nynorsk, no Norwegian, pl Polish,
pt Portuguese, ro Romanian, ru Russian, sk Slovak, sl Slovenian, sr Serbian, sv Swedish, sw Swahili,
ta Tamil, te Telugu, th Thai, tl Tagalog, tr Turkish, uk Ukrainian, ur Urdu, vi Vietnamese,
zh Chinese"""
LANGUAGE_NAMES: Final = dict(re.findall(r"([a-z]{2}) ([^,]+)", _LANGUAGES))


def check_style(value: object) -> str | None:
    """A style's name, None where none is asked; raises InvalidRequest."""
    if value is None or (isinstance(value, str) and value in STYLES):
        return value
    raise InvalidRequest(f"style is {shown(value)}; known: {', '.join(STYLES)}")


def check_language(value: object) -> str | None:
    """A language's name or tag as the client wrote it; raises InvalidRequest."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"language is {shown(value)}; it must be a string")
    text = value.strip()
    if len(text) > MAX_LANGUAGE_LENGTH:
        raise InvalidRequest(
            f"language has {len(text)} characters; the limit is {MAX_LANGUAGE_LENGTH}"
        )
    if not LANGUAGE.fullmatch(text):
        raise InvalidRequest(
            f'language is {shown(value)}; it must be a name or a tag, as "German" or "de-AT"'
        )
    return text


def instruct(prompt: str | None, style: str | None, language: str | None, default: str) -> str:
    """What the model is asked.

    prompt: the client's own words, None for none; default: asked where neither it nor a style is
    """
    chosen = STYLES[style] if style is not None else None
    additions = []
    if prompt is not None and chosen is not None:
        additions.append(chosen.addition)
    if language is not None:
        additions.append(f"Answer in {_language_name(language)}.")
    question = prompt or (chosen.question if chosen is not None else default)
    if not additions:
        return question
    # The client's words may end in the middle of anything.
    separator = " " if prompt is None else "\n"
    return separator.join((question, " ".join(additions)))


def _language_name(language: str) -> str:
    tag = LANGUAGE_TAG.fullmatch(language)
    if tag is None:
        return language
    name = LANGUAGE_NAMES.get(tag[1].lower())
    if name is None:
        return f"the language with the tag {language}"
    return f"{name} ({language})" if tag[2] else name


# Bullets, numbers and emphasis, as models decorate lists.
_BULLET: Final = re.compile(r"^\s*(?:[-*•–]|\d{1,3}[.)])\s+")
_EMPHASIS: Final = re.compile(r"\*\*|__|`")
DECORATION: Final = " \t.。\"'“”*_"
_HEADING: Final = re.compile(r"^[^,;#]{1,40}:(?:\s+|$)")
_SEPARATOR: Final = re.compile(r"[,;，、；،]|\s*#")


def tags_of(text: str) -> list[str]:
    """The tags in a model's answer, each once, in the order they were told.

    A list with commas, lines, bullets, numbers, headings or hashtags.
    """
    tags: dict[str, str] = {}
    for line in text.splitlines():
        plain = _HEADING.sub("", _BULLET.sub("", _EMPHASIS.sub("", line)))
        for part in _SEPARATOR.split(plain):
            tag = part.strip(DECORATION)
            if tag:
                tags.setdefault(tag.casefold(), tag)
    return list(tags.values())
