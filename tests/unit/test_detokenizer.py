"""Text out: whole characters, no special tokens, cut before the stop string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from model.checkpoint import CheckpointError
from model.serving.detokenizer import IncrementalDetokenizer, TokenBytes

TOKENIZER = Tokenizer.from_file(
    str(Path(__file__).parents[2] / "model" / "demo" / "checkpoint" / "tokenizer.json")
)
TOKEN_BYTES = TokenBytes(TOKENIZER)
IM_END = TOKENIZER.token_to_id("<|im_end|>")
THINK = TOKENIZER.token_to_id("<think>")
BYTE_IDS = {
    TOKEN_BYTES[i]: i for i in range(TOKENIZER.get_vocab_size()) if len(TOKEN_BYTES[i]) == 1
}


def ids_of(content: str | bytes) -> list[int]:
    """One token a byte: the most ways to be in the middle of a character."""
    encoded = content.encode() if isinstance(content, str) else content
    return [BYTE_IDS[bytes([byte])] for byte in encoded]


def streamed(ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """Every delta, then what flush gives."""
    detokenizer = IncrementalDetokenizer(TOKEN_BYTES, stop)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The rule itself: character by character, to the first stop string that is complete."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def test_every_byte_has_a_token_here() -> None:
    assert len(BYTE_IDS) == 256


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("The cat sat on the mat.", id="ASCII"),
        pytest.param("naïve café — über", id="two and three bytes"),
        pytest.param("红色的圆形在左边", id="CJK"),
        pytest.param("👩‍👩‍👧‍👦 and 🏳️‍🌈 and 👍🏽", id="emoji joined by ZWJ, with modifiers"),
        pytest.param("e\u0301\u0302 \u0939\u093f\u0928\u094d\u0926\u0940", id="combining marks"),
        pytest.param("literal \ufffd inside and at the end \ufffd", id="a real U+FFFD"),
        pytest.param("nul \x00 tab \t line \r\n", id="control characters"),
        pytest.param("", id="nothing"),
    ],
)
@pytest.mark.parametrize("one_byte_a_token", [True, False])
def test_text_comes_whole(text: str, one_byte_a_token: bool) -> None:
    ids = ids_of(text) if one_byte_a_token else TOKENIZER.encode(text).ids
    deltas = streamed(ids)
    assert "".join(deltas) == TOKENIZER.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


def test_a_character_comes_with_its_last_byte() -> None:
    assert streamed(ids_of("é👍")) == ["", "é", "", "", "", "👍", ""]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"\xff\xfe", "\ufffd\ufffd", id="bytes that never begin a character"),
        pytest.param(b"a\xf0\x9f\x91", "a\ufffd", id="the text ends inside a character"),
        pytest.param(b"\xf0\x9fabc", "\ufffdabc", id="a character broken off"),
        pytest.param(b"\xed\xa0\x80", "\ufffd\ufffd\ufffd", id="an encoded surrogate"),
        pytest.param(b"\xc0\xaf\x80", "\ufffd\ufffd\ufffd", id="overlong, then a stray byte"),
    ],
)
def test_bytes_that_are_no_utf8_become_replacement_characters(content: bytes, text: str) -> None:
    assert "".join(streamed(ids_of(content))) == text == TOKENIZER.decode(ids_of(content))


def test_endless_garbage_is_neither_held_back_nor_slow() -> None:
    deltas = streamed(ids_of(b"\x80" * 20_000))
    assert deltas == ["\ufffd"] * 20_000 + [""]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        pytest.param("one\ntwo", ("\n",), "one", id="one character"),
        pytest.param("ends END here", (" END",), "ends", id="several tokens"),
        pytest.param("STOP", ("STOP",), "", id="at the very beginning"),
        pytest.param(
            "the STO is no stop", ("STOP",), "the STO is no stop", id="only its beginning"
        ),
        pytest.param("it ends in STO", ("STOP",), "it ends in STO", id="its beginning at the end"),
        pytest.param("aaab", ("aab",), "a", id="begins inside its own beginning"),
        pytest.param("ababac", ("abac",), "ab", id="begins anew inside held-back text"),
        pytest.param(
            "xabcy", ("abcd", "bc"), "xa", id="a shorter one inside a longer one's beginning"
        ),
        pytest.param("xabcd", ("abcd", "bc"), "xa", id="the first complete one wins"),
        pytest.param("xabc", ("bc", "abc"), "x", id="of two complete at once, the longest"),
        pytest.param("a\n\nb", ("\n\n", "\n"), "a", id="one is a part of the other"),
        pytest.param("好的。停止", ("停止",), "好的。", id="CJK"),
        pytest.param("ok 👩‍👧 no", ("👧",), "ok 👩‍", id="inside joined emoji"),
        pytest.param("ok 👍 no", ("\ufffd",), "ok 👍 no", id="half a character is not U+FFFD"),
    ],
)
@pytest.mark.parametrize("one_byte_a_token", [True, False])
def test_stop_strings(
    text: str, stop: tuple[str, ...], expected: str, one_byte_a_token: bool
) -> None:
    ids = ids_of(text) if one_byte_a_token else TOKENIZER.encode(text).ids
    assert cut(text, stop) == expected, "the table's rows follow the rule"
    assert "".join(streamed(ids, stop)) == expected


def test_stopping_is_told_and_final() -> None:
    detokenizer = IncrementalDetokenizer(TOKEN_BYTES, ("!", "?"))
    assert [detokenizer.push(token_id) for token_id in ids_of("ab?cd!")] == list("ab") + [""] * 4
    assert detokenizer.stopped
    assert detokenizer.flush() == ""


def test_not_stopped_without_a_stop_string() -> None:
    detokenizer = IncrementalDetokenizer(TOKEN_BYTES, ("STOP",))
    assert "".join(map(detokenizer.push, ids_of("a STO"))) == "a "
    assert not detokenizer.stopped
    assert detokenizer.flush() == "STO"


def test_a_stop_string_may_be_complete_only_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(TOKEN_BYTES, ("\ufffd",))
    assert "".join(map(detokenizer.push, ids_of(b"ab\xf0\x9f"))) == "ab"
    assert detokenizer.flush() == ""
    assert detokenizer.stopped


def test_special_tokens_are_no_text_even_inside_a_character() -> None:
    first, second = ids_of("é")
    assert "".join(streamed([first, IM_END, second, IM_END])) == "é"
    assert TOKENIZER.decode([first, IM_END, second, IM_END]) == "é"


def test_special_tokens_can_be_shown() -> None:
    detokenizer = IncrementalDetokenizer(TOKEN_BYTES, skip_special_tokens=False)
    assert detokenizer.push(IM_END) == "<|im_end|>"


def test_added_tokens_that_are_not_special_are_text() -> None:
    assert (
        "".join(streamed([THINK, *ids_of("so")]))
        == "<think>so"
        == TOKENIZER.decode([THINK, *ids_of("so")])
    )


def test_ids_beyond_the_vocabulary_are_no_text() -> None:
    assert "".join(streamed([*ids_of("a"), 9_999_999, *ids_of("b")])) == "ab"


def test_an_added_token_outside_the_byte_alphabet_is_its_own_text() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens(["<two words 词>"])
    token_id = tokenizer.token_to_id("<two words 词>")
    assert (
        TokenBytes(tokenizer)[token_id].decode() == "<two words 词>" == tokenizer.decode([token_id])
    )


def test_other_vocabularies_are_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(CheckpointError, match="decoder is Metaspace"):
        TokenBytes(tokenizer)


@settings(max_examples=500, deadline=None)
@given(
    ids=st.lists(st.integers(0, TOKENIZER.get_vocab_size() + 3), max_size=60),
    stop=st.lists(st.text("ab \ufffde", min_size=1, max_size=4), max_size=4),
)
def test_any_ids_give_the_full_decoding_cut_at_the_stop(ids: list[int], stop: list[str]) -> None:
    assert "".join(streamed(ids, tuple(stop))) == cut(TOKENIZER.decode(ids), tuple(stop))


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("abé👍", max_size=40),
    stop=st.lists(st.text("abé👍", min_size=1, max_size=5), max_size=4),
    data=st.data(),
)
def test_where_tokens_end_makes_no_difference(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    ids = TOKENIZER.encode(text).ids if data.draw(st.booleans()) else ids_of(text)
    deltas = streamed(ids, tuple(stop))
    assert "".join(deltas) == cut(text, tuple(stop))
    # What was let go is never taken back: no delta shows the beginning of a stop string.
    shown = "".join(deltas[:-1])
    assert cut(text, tuple(stop)).startswith(shown)
