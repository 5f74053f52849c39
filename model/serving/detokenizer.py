"""Token ids to text as they come: whole characters only, stop strings cut off.

Knows byte-level vocabularies, as Qwen's is. Knows neither the engine nor the protocols.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final

from tokenizers.decoders import ByteLevel

from model.checkpoint import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself; the 68 others, in order, for the characters from U+0100 on.
    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_ALPHABET: Final = _byte_alphabet()


class TokenBytes(dict[int, bytes]):
    """The bytes each token id stands for; made once for a tokenizer, for any thread.

    None for an id without a token, as in a padded vocabulary. Ids are looked up when they are first
    asked for. Raises CheckpointError if the tokenizer's vocabulary is not byte-level.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer.decoder, ByteLevel):
            raise CheckpointError(
                f"the tokenizer's decoder is {type(tokenizer.decoder).__name__}; "
                "this server reads byte-level vocabularies"
            )
        self._tokenizer = tokenizer
        self.special_ids = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )

    def __missing__(self, token_id: int) -> bytes:
        known = self[token_id] = self._read(token_id)
        return known

    def _read(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(BYTE_ALPHABET[character] for character in token)
        except KeyError:  # an added token is plain text and may hold any character
            return token.encode()


class IncrementalDetokenizer:
    """The text of one answer, piece by piece.

    The pieces and `flush` together equal the tokenizer's decoding of all ids, bytes that are no
    UTF-8 as U+FFFD, cut before the stop string that is complete first; of several complete with the
    same character, before the longest. Where tokens begin and end makes no difference to the text.

    Not DecodeStream of tokenizers: it emits nothing while the text ends in U+FFFD, so that bytes
    which never become a character hold back all text and are decoded anew with each token.

    stopped: a stop string came; the text has ended
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        stop: tuple[str, ...] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        assert all(stop), "SamplingParams refuses empty stop strings"
        self._token_bytes = token_bytes
        self._stop = stop
        self._skipped = token_bytes.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._within_character = False
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add one token; returns the text that is now certain, often none. After the stop: none."""
        if self.stopped or token_id in self._skipped:
            return ""
        data = self._token_bytes[token_id]
        if data.isascii() and not self._within_character:  # as most are: no state is needed
            return self._advance(data.decode())
        text = self._utf8.decode(data)
        self._within_character = bool(self._utf8.getstate()[0])
        return self._advance(text)

    def flush(self) -> str:
        """The text held back until now; call it once, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._advance(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _advance(self, added: str) -> str:
        """Take in text; returns what no stop string can claim any more."""
        text = self._held + added
        if not self._stop:
            return text
        # Nothing before the held text can belong to a stop string: it was let go because of that.
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            _, start = min(found)
            self.stopped = True
            self._held = ""
            return text[:start]
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
