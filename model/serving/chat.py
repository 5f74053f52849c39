"""Messages to a prompt: the checkpoint's chat template, tokens, image placeholders.

Knows the template language and the tokenizer. Knows no protocol; pictures come decoded.
What users write stays text: only the template can write special tokens (CVE-2026-44222).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer

from model.checkpoint import CheckpointError
from model.errors import InvalidRequest, PromptTooLong
from model.serving.chat_template import ChatTemplate
from model.serving.detokenizer import IncrementalDetokenizer, TokenBytes
from model.serving.json_text import strings_of, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.checkpoint import Checkpoint
    from model.request import ImageInput
    from model.serving.images import DecodedImage
    from model.settings import ImageSettings, RequestSettings

ROLES: Final = ("system", "user", "assistant", "tool")
# Characters for private use, which no standard gives a meaning; a prompt has far fewer than these.
STAND_INS: Final = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message."""

    image: DecodedImage


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made in an earlier turn; arguments: a JSON object."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its parts in order; then the calls it makes.

    Raises InvalidRequest for a role that is none of ROLES.
    """

    role: str
    parts: tuple[TextPart | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(
                f"role is {self.role[:32]!r}; it must be one of {', '.join(ROLES)}"
            )

    @property
    def text(self) -> str | None:
        """The whole content where that is at most one text: the form every template understands."""
        match self.parts:
            case ():
                return ""
            case (TextPart(text),):
                return text
            case _:
                return None


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the engine takes it; images in the order of their offsets."""

    token_ids: tuple[int, ...]
    images: tuple[ImageInput, ...]


class PromptEncoder:
    """Conversations to tokens and placed images under one server's limits; for any thread.

    Text without special tokens gets the ids that transformers' tokenizer gives the whole prompt.
    A special token typed by a user is encoded as the characters it is written with.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer_json: str,
        image_token_id: int,
        request: RequestSettings,
        image: ImageSettings,
    ) -> None:
        self._template = template
        self._image_token_id = image_token_id
        self._request, self._image = request, image
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.token_bytes = TokenBytes(self.tokenizer)
        self._special = _special_tokens(self.tokenizer, image_token_id)
        self._plain = _plain_tokenizer(tokenizer_json, self._special)
        # The longest first: of tokens that begin alike, the tokenizer takes the longest too.
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._borders = sorted({c for token in self._special for c in (token[0], token[-1])})

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, request: RequestSettings, image: ImageSettings
    ) -> PromptEncoder:
        """Read template and tokenizer. Raises CheckpointError if the server cannot use them."""
        template = ChatTemplate.load(checkpoint.path)
        try:
            tokenizer_json = (checkpoint.path / "tokenizer.json").read_text(encoding="utf-8")
            return cls(template, tokenizer_json, checkpoint.image_token_id, request, image)
        except CheckpointError:
            raise
        except Exception as e:  # tokenizers raises bare Exception
            raise CheckpointError(f"{checkpoint.path / 'tokenizer.json'} is not usable: {e}") from e

    @property
    def tool_call_marks(self) -> tuple[int, int] | None:
        """The ids of <tool_call> and </tool_call>, None where they are no tokens."""
        opening, closing = map(self._special.get, ("<tool_call>", "</tool_call>"))
        return None if opening is None or closing is None else (opening, closing)

    def detokenizer(self, stop: tuple[str, ...] = ()) -> IncrementalDetokenizer:
        """A new answer's detokenizer."""
        return IncrementalDetokenizer(self.token_bytes, stop)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def check_num_images(self, num_images: int) -> None:
        """Raise InvalidRequest for more pictures than a prompt may hold; before decoding any."""
        if num_images > self._image.max_per_request:
            raise InvalidRequest(
                f"prompt has {num_images} images; the limit is {self._image.max_per_request}"
            )

    def encode(
        self,
        messages: Sequence[Message],
        *,
        limit: int,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> EncodedPrompt:
        """Encode a conversation; each image's placeholders stand where the template puts it.

        limit: tokens the prompt may have, placeholders included
        tools: JSON schemas of functions, user input like any text

        Raises InvalidRequest: over a limit, not Unicode, refused by the template; PromptTooLong.
        """
        images = [p.image for m in messages for p in m.parts if isinstance(p, ImagePart)]
        texts = [p.text for m in messages for p in m.parts if isinstance(p, TextPart)]
        texts.extend(strings_of(tools))
        texts.extend(strings_of([(c.name, c.arguments) for m in messages for c in m.tool_calls]))
        self._check(messages, images, texts)
        stand_ins = self._stand_ins(texts)
        hide, show = str.maketrans(stand_ins), {ord(s): c for c, s in stand_ins.items()}
        rendered = self._template.render(
            [self._as_dict(message, hide) for message in messages],
            tools=tools and translated(tools, hide),
            add_generation_prompt=add_generation_prompt,
        )
        return self._tokenise(rendered, show, images, limit)

    def encode_raw(
        self, prompt: str | Sequence[int], *, limit: int, add_special_tokens: bool = True
    ) -> EncodedPrompt:
        """Encode a prompt that its sender wrote whole, without the template; or take its tokens.

        Here, and only here, a special token in the text is one: it is the model's own input.

        Raises InvalidRequest: empty, over a limit, not Unicode, a picture's placeholder;
        PromptTooLong.
        """
        if isinstance(prompt, str):
            self._check_text([prompt])
            prompt = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids
        if not prompt:
            raise InvalidRequest("prompt is empty; it must have at least one token")
        if len(prompt) > limit:
            raise PromptTooLong(len(prompt), limit)
        if self._image_token_id in prompt:
            raise InvalidRequest(
                f"prompt has token id {self._image_token_id}, which stands for a picture; "
                "pictures go with messages"
            )
        return EncodedPrompt(tuple(prompt), ())

    def _check(
        self, messages: Sequence[Message], images: Sequence[DecodedImage], texts: Sequence[str]
    ) -> None:
        if not messages:
            raise InvalidRequest("the conversation has 0 messages; it needs at least one")
        self.check_num_images(len(images))
        self._check_text(texts)

    def _check_text(self, texts: Sequence[str]) -> None:
        try:
            num_bytes = sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError as e:
            raise InvalidRequest(
                f"text is not valid Unicode: character {e.start} is half a surrogate pair, "
                f"U+{ord(e.object[e.start]):04X}"
            ) from e
        if num_bytes > self._request.max_prompt_bytes:
            limit = self._request.max_prompt_bytes
            raise InvalidRequest(f"prompt has {num_bytes} bytes of text; the limit is {limit}")

    def _stand_ins(self, texts: Sequence[str]) -> dict[str, str]:
        """For each character that begins or ends a special token, one that no text contains.

        With these in place no user's text can hold a special token, nor can two texts that the
        template puts side by side, whatever it trims. One character for one: what the template
        measures and compares stays as it was.
        """
        used = set(self._template.source).union(*texts)
        if used.isdisjoint(self._borders):
            return {}
        free = (c for c in map(chr, STAND_INS) if c not in used)
        return dict(zip(self._borders, free, strict=False))

    def _as_dict(self, message: Message, hide: Mapping[int, str]) -> dict[str, Any]:
        """A message as templates read it; a single text as a string, anything else as a list."""
        fields = self._content(message, hide)
        if message.tool_calls:
            fields["tool_calls"] = [
                {
                    "type": "function",
                    "function": translated({"name": c.name, "arguments": c.arguments}, hide),
                }
                for c in message.tool_calls
            ]
        return fields

    def _content(self, message: Message, hide: Mapping[int, str]) -> dict[str, Any]:
        text = message.text
        if text is None:
            parts = [
                {"type": "text", "text": part.text.translate(hide)}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in message.parts
            ]
            return {"role": message.role, "content": parts}
        content = {"content": text}
        if message.role == "assistant" and "reasoning_content" in self._template.source:
            content = _split_reasoning(text)
        return {"role": message.role} | {k: v.translate(hide) for k, v in content.items()}

    def _tokenise(
        self, rendered: str, show: Mapping[int, str], images: Sequence[DecodedImage], limit: int
    ) -> EncodedPrompt:
        # Odd pieces are the template's special tokens. What stands between two of them is encoded
        # as one text: merges run across the joint of template and user as in the tokenizer.
        token_ids: list[int] = []
        for i, piece in enumerate(self._split(rendered)):
            if i % 2:
                token_ids.append(self._special[piece])
            elif piece:
                text = piece.translate(show)
                token_ids += self._plain.encode(text, add_special_tokens=False).ids
        num_pads = token_ids.count(self._image_token_id)
        if num_pads != len(images):
            raise InvalidRequest(
                f"the chat template shows {num_pads} of {len(images)} images; "
                "images belong in messages of the user"
            )
        num_tokens = len(token_ids) + sum(image.num_tokens - 1 for image in images)
        if num_tokens > limit:
            raise PromptTooLong(num_tokens, limit)
        return self._with_placeholders(token_ids, images)

    def _with_placeholders(
        self, token_ids: Sequence[int], images: Sequence[DecodedImage]
    ) -> EncodedPrompt:
        expanded: list[int] = []
        placed: list[ImageInput] = []
        waiting = iter(images)
        for token_id in token_ids:
            if token_id == self._image_token_id:
                image = next(waiting)
                placed.append(image.placed(len(expanded)))
                expanded += [token_id] * image.num_tokens
            else:
                expanded.append(token_id)
        return EncodedPrompt(tuple(expanded), tuple(placed))


def _special_tokens(tokenizer: Tokenizer, image_token_id: int) -> dict[str, int]:
    """Every added token, special or not, with its id; the image placeholder is one of them."""
    added = tokenizer.get_added_tokens_decoder()
    for token in added.values():
        # Rules about neighbouring text are not followed here; no Qwen tokenizer has any.
        if token.lstrip or token.rstrip or token.single_word or not token.content:
            raise CheckpointError(
                f"added token {token.content!r} has lstrip, rstrip or single_word, or is empty; "
                "this server does not support that"
            )
    if image_token_id not in added:
        raise CheckpointError(f"image_token_id is {image_token_id}, which is no added token")
    return {token.content: token_id for token_id, token in added.items()}


def _plain_tokenizer(tokenizer_json: str, special: Mapping[str, int]) -> Tokenizer:
    """The same tokenizer without added tokens: to it, `<|im_end|>` is ten characters of text."""
    document = json.loads(tokenizer_json)
    document |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(document))
    for text, token_id in special.items():
        if token_id in plain.encode(text, add_special_tokens=False).ids:
            raise CheckpointError(f"the tokenizer cannot write {text!r} without the special token")
    return plain


def _split_reasoning(text: str) -> dict[str, str]:
    """An answer's reasoning apart from the rest, as templates of thinking models do themselves.

    They look for the special token </think>, which they would not find in a user's text.
    """
    before, found, _ = text.partition("</think>")
    if not found:
        return {"content": text}
    reasoning = before.rstrip("\n").rpartition("<think>")[2].lstrip("\n")
    return {"reasoning_content": reasoning, "content": text.rpartition("</think>")[2].lstrip("\n")}
