"""lm-evaluation-harness (written with 0.4.13): loglikelihoods and generations, as it asks for them.

It runs as a program of its own, without the internet: tokenizer and tasks come from files.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from model.demo import CHECKPOINT_DIR
from tests.serving import ROOT, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.serving import RunningServer

PROGRAM: Final = ROOT / ".venv-lm-eval" / "bin" / "lm_eval"
TASK: Final = "scenes"
QUESTIONS: Final = (
    "Describe this image.",
    "What color is it?",
    "How many shapes are there?",
    "What shape is it?",
)
CHOICES: Final = (" A red circle.", " purple purple", " Two.")
MAX_TOKENS: Final = 12
STOP: Final = "."

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="lm_eval is not installed: `make lm-eval`"
)


@pytest.fixture(scope="module")
def exact_server() -> Iterator[RunningServer]:
    """One that computes in float32, as the model does here to compare with."""
    with start_server("--dtype", "float32") as running:
        yield running


def evaluate(
    folder: Path, rows: Sequence[dict[str, Any]], task: dict[str, Any], *options: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run it on a task of these rows: the task's results, and what it logged of each row."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    shape = {"test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "answer"}
    # JSON is YAML.
    (folder / "task.yaml").write_text(json.dumps({"task": TASK, **source, **shape, **task}))
    output = folder / "output"
    files = ("--include_path", str(folder), "--output_path", str(output), "--log_samples")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [str(PROGRAM), "run", "--tasks", TASK, *files, *options],
        cwd=folder,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = output.rglob("results_*.json")
    (samples,) = output.rglob(f"samples_{TASK}_*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(logged) == len(rows)
    return json.loads(results.read_text())["results"][TASK], logged


def asking(model: str, url: str) -> tuple[str, ...]:
    arguments = {
        "model": "qwen3-vl",
        "base_url": url,
        "tokenizer": str(CHECKPOINT_DIR),
        "tokenizer_backend": "huggingface",
        "num_concurrent": "2",
    }
    told = ",".join(f"{name}={value}" for name, value in arguments.items())
    return ("--model", model, "--model_args", told)


def score(metric: str) -> dict[str, Any]:
    return {"metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]}


def post(url: str, **body: Any) -> dict[str, Any]:
    """The first choice of an answer over plain HTTP."""
    settings = {"model": "qwen3-vl", "max_tokens": MAX_TOKENS, "temperature": 0}
    answer = httpx.post(url, json={**settings, **body}, timeout=60).raise_for_status().json()
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def likelihoods(pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """What the model itself gives each continuation of its context; whether it is the likeliest."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT_DIR)
    model = Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT_DIR, dtype=torch.float32)
    found = []
    for context, continuation in pairs:
        start = len(tokenizer(context).input_ids)
        tokens = torch.tensor(tokenizer(context + continuation).input_ids)
        with torch.inference_mode():
            logits = model.eval()(input_ids=tokens[None]).logits[0, start - 1 : -1]
        wanted = tokens[start:]
        logprobs = logits.log_softmax(-1).gather(-1, wanted[:, None])
        found.append((logprobs.sum().item(), bool((logits.argmax(-1) == wanted).all())))
    return found


def test_multiple_choice_weighs_each_continuation_as_the_model_does(
    exact_server: RunningServer, tmp_path: Path
) -> None:
    url = f"{exact_server.http_url}/v1/completions"
    # The model's own words are what is_greedy is true of; the last answer is one it finds unlikely.
    rows = [
        {"question": question, "choices": [*CHOICES, post(url, prompt=question)["text"]]}
        for question in QUESTIONS
    ]
    expected = likelihoods([(row["question"], one) for row in rows for one in row["choices"]])
    width = len(CHOICES) + 1
    by_row = [expected[at : at + width] for at in range(0, len(expected), width)]
    likeliest = [max(range(width), key=lambda at, row=row: row[at]) for row in by_row]
    answers = [*likeliest[:-1], (likeliest[-1] + 1) % width]
    for row, answer in zip(rows, answers, strict=True):
        row["answer"] = answer

    task = {"output_type": "multiple_choice", "doc_to_choice": "choices", "target_delimiter": ""}
    results, logged = evaluate(
        tmp_path,
        rows,
        {**task, **score("acc")},
        *asking("local-completions", url),
        *("--batch_size", "3"),
    )
    told = [response[0] for sample in logged for response in sample["resps"]]
    assert [float(one) for one, _ in told] == pytest.approx(
        [one for one, _ in expected], rel=0, abs=1e-3
    )
    assert [greedy == "True" for _, greedy in told] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in expected} == {True, False}
    assert results["acc,none"] == (len(rows) - 1) / len(rows)


@pytest.mark.parametrize(
    ("model", "route", "options"),
    [
        pytest.param("local-completions", "completions", ("--batch_size", "3"), id="completions"),
        pytest.param(
            "local-chat-completions", "chat/completions", ("--apply_chat_template",), id="chat"
        ),
    ],
)
def test_generate_until_ends_where_the_same_answer_over_http_has_its_stop(
    exact_server: RunningServer, tmp_path: Path, model: str, route: str, options: tuple[str, ...]
) -> None:
    url = f"{exact_server.http_url}/v1/{route}"

    def answer(question: str) -> str:
        if route == "completions":
            return str(post(url, prompt=question)["text"])
        return str(
            post(url, messages=[{"role": "user", "content": question}])["message"]["content"]
        )

    whole = [answer(question) for question in QUESTIONS]
    assert any(STOP in one for one in whole)
    assert len(set(whole)) == len(whole), "a question's answer tells which it was"
    rows = [
        {"question": question, "answer": one.split(STOP)[0]}
        for question, one in zip(QUESTIONS, whole, strict=True)
    ]
    generation = {"until": [STOP], "max_gen_toks": MAX_TOKENS, "do_sample": False, "temperature": 0}
    results, logged = evaluate(
        tmp_path,
        rows,
        {
            "output_type": "generate_until",
            "generation_kwargs": generation,
            **score("exact_match"),
        },
        *asking(model, url),
        *options,
    )
    assert [sample["resps"][0][0] for sample in logged] == [row["answer"] for row in rows]
    assert results["exact_match,none"] == 1.0
