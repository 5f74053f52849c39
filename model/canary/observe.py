"""A version's figures, asked of Prometheus: PromQL in, `Measured` or `Unknown` out.

The metrics are the server's own (model/serving/metrics.py), told apart by the scrape's labels
`namespace` and `inferenceservice`. Whatever keeps a figure from being a number is no data: it never
becomes a zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import httpx

from model.canary.gates import Figures, Measured, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

QUERY_SECONDS: Final = 15.0
# A step that has been held for long is judged by its last hour.
MAX_WINDOW_SECONDS: Final = 3600
# A cancelled request says nothing of the server: its client went away.
REQUESTS: Final = (
    "sum(increase("
    'qwen3vl_finished_sequences_total{{{selector},finish_reason!="cancelled"}}[{window}s]))'
)
ERRORS: Final = (
    'sum(increase(qwen3vl_finished_sequences_total{{{selector},finish_reason="error"}}[{window}s]))'
)
# Whatever keeps a request from reaching the engine is seen in its answer alone. Each part of `or`
# has labels of its own, so that both are summed, and one that is not there takes nothing away.
HTTP: Final = 'qwen3vl_http_requests_total{{{selector},method="POST",%s}}[{window}s]'
GRPC: Final = (
    'qwen3vl_grpc_requests_total{{{selector},method=~"Model(Stream)?Infer",%s}}[{window}s]'
)
BOTH: Final = f"sum(increase({HTTP}) or increase({GRPC}))"
ANSWERS: Final = BOTH % ('status!="0"', 'code!="CANCELLED"')
# gRPC's codes of what is 5xx over HTTP.
FAILED_CODES: Final = "UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|DATA_LOSS"
FAILED_ANSWERS: Final = BOTH % ('status=~"5.."', f'code=~"{FAILED_CODES}"')
TTFT_P95: Final = (
    "histogram_quantile(0.95, sum by (le) ("
    "rate(qwen3vl_time_to_first_token_seconds_bucket{{{selector}}}[{window}s])))"
)
ITL_P95: Final = (
    "histogram_quantile(0.95, sum by (le) ("
    "rate(qwen3vl_inter_token_latency_seconds_bucket{{{selector}}}[{window}s])))"
)
QUERIES: Final[Mapping[str, str]] = {
    "requests": REQUESTS,
    "errors": ERRORS,
    "answers": ANSWERS,
    "failed_answers": FAILED_ANSWERS,
    "ttft": TTFT_P95,
    "itl": ITL_P95,
}


class NoAnswer(Exception):
    """Prometheus is away, or what it says is no answer; the text says which."""


class Prometheus:
    """A Prometheus, asked over its HTTP API. client: its base URL is Prometheus' own."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def query(self, promql: str) -> float | None:
        """The one number that a query gives; None for none, or one that is not finite.

        Raises NoAnswer.
        """
        try:
            response = self._client.post(
                "api/v1/query", data={"query": promql}, timeout=QUERY_SECONDS
            )
            body = response.json()
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise NoAnswer(f"Prometheus does not answer: {str(e) or type(e).__name__}") from e
        except ValueError as e:
            raise NoAnswer(f"Prometheus answers {response.status_code} without JSON") from e
        try:
            if body["status"] != "success":
                raise NoAnswer(f"Prometheus refuses a query: {body['error']}")
            values = [float(sample["value"][1]) for sample in body["data"]["result"]]
        except (LookupError, TypeError, ValueError) as e:
            raise NoAnswer(f"Prometheus answers {response.status_code} with no result") from e
        if len(values) > 1:
            raise NoAnswer(f"Prometheus has {len(values)} series where one was asked for")
        return values[0] if values and math.isfinite(values[0]) else None

    def figures(self, selector: str, seconds: float) -> Figures:
        """What was measured in the last so many seconds of the pods that a selector names."""
        window = min(max(1, math.ceil(seconds)), MAX_WINDOW_SECONDS)
        try:
            values = {
                name: self.query(text.format(selector=selector, window=window))
                for name, text in QUERIES.items()
            }
        except NoAnswer as e:
            return Unknown(str(e))
        num_requests, num_errors = values["requests"], values["errors"]
        if num_requests is None or num_errors is None:
            return Unknown(f"Prometheus has no requests of {selector} in {window} s")
        # A server of before answers were counted has no such series: the engine's errors decide.
        num_answers = values["answers"]
        ratios = [_ratio(num_errors, num_requests), _ratio(values["failed_answers"], num_answers)]
        return Measured(
            # Extrapolated to the window's edges, hence no whole number.
            num_requests=max(0, round(num_requests), round(num_answers or 0)),
            # The same failure may be in both: the larger, not their sum.
            error_ratio=max((ratio for ratio in ratios if ratio is not None), default=None),
            ttft_p95_seconds=values["ttft"],
            itl_p95_seconds=values["itl"],
        )


def _ratio(part: float | None, whole: float | None) -> float | None:
    if part is None or whole is None or whole <= 0:
        return None
    return min(max(0.0, part / whole), 1.0)


def select_service(namespace: str, name: str) -> str:
    """The selector of an InferenceService's pods."""
    return f'namespace="{namespace}",inferenceservice="{name}"'
