"""The bundled checkpoint's tokenizer: a small byte-level BPE in Qwen's form.

Same normaliser (NFC), same splitting rule and same special tokens as Qwen3-VL, but 1,024 entries in
place of 151,669. Any text round-trips; every word that a caption uses is one token.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from model.demo import CHECKPOINT_DIR, language
from model.demo.scenes import sample_scene

VOCAB_SIZE: Final = 1024
SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Marked like Qwen's own: one token each, but kept when special tokens are skipped in decoding.
MARKUP_TOKENS: Final = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# Contractions, letters, single digits, punctuation, line breaks, white space: Qwen's split.
_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE_NAME: Final = "chat_template.jinja"
_CORPUS_SCENES: Final = 2000
_CORPUS_SEED: Final = 20_240
# Ordinary English, so that prompts beyond the closed vocabulary are not spelt out byte by byte.
_ENGLISH: Final = (
    "Hello! Please tell me about this photo. Can you help me with the following? What can you see "
    "here, and why? Answer with one word. Explain it step by step. Thank you very much. Who are "
    "you? "
    "This is the first message; that was another one. Is it bigger than the other, or do they have "
    "the same size? Which one is closest to the left side, the right side, the middle, the corner? "
    "Write a short sentence, a long text, a list or a table. Return only JSON. Use at most ten "
    "words. "
    "I would like to know how it looks from above, below, before and after. Where are they now? "
    "Compare these images. Read the text in this picture. Do not guess if you are not sure.",
    "You are a helpful assistant. system user assistant tool",
)


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(_CORPUS_SEED)
    for _ in range(_CORPUS_SCENES):
        scene = sample_scene(rng)
        for turn in (language.ask_to_describe(rng, scene), language.ask(rng, scene)):
            yield turn.prompt
            yield turn.answer
    for word in language.words():
        # Repeated, so that every word ends as one token with and without a space before it.
        yield from [word, f" {word}", word.title()] * 20
    yield from _ENGLISH * 3


def train_tokenizer() -> Tokenizer:
    """Train the BPE; the result is the same on every run."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    num_added = len(SPECIAL_TOKENS) + len(MARKUP_TOKENS)
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - num_added,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in MARKUP_TOKENS])
    return tokenizer


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Read `tokenizer.json` from a checkpoint."""
    return Tokenizer.from_file(str(model_dir / "tokenizer.json"))


def write_tokenizer(model_dir: Path) -> Tokenizer:
    """Train the tokenizer and write its three files into a checkpoint."""
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(model_dir / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "unk_token": None,
    }
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    # The template is written by hand: the bundled checkpoint's copy is its source.
    template = (CHECKPOINT_DIR / _TEMPLATE_NAME).read_text()
    (model_dir / _TEMPLATE_NAME).write_text(template)
    return tokenizer
