"""Triton's statistics: what is recorded is what a snapshot shows."""

from __future__ import annotations

from model.serving.statistics import Duration, InferTimes, ModelStatistics, StatisticsRecorder
from model.serving.v2_model import model_statistics


def test_requests_add_up() -> None:
    recorder = StatisticsRecorder(clock=lambda: 12.5)
    assert recorder.snapshot() == ModelStatistics()
    times = InferTimes(queue=1, compute_input=2, compute_infer=30, compute_output=4, total=40)
    recorder.record_success(times)
    recorder.record_success(times, num_sequences=5)
    recorder.record_failure(7)
    now = recorder.snapshot(execution_count=11)
    assert now.success == Duration(2, 80)
    assert now.fail == Duration(1, 7)
    assert now.queue == Duration(2, 2)
    assert now.compute_infer == Duration(2, 60)
    assert (now.inference_count, now.execution_count, now.last_inference_ms) == (6, 11, 12_500)


def test_the_protocols_form_has_every_stage() -> None:
    stats = model_statistics("m", ModelStatistics(success=Duration(1, 2)))
    assert stats["inference_stats"]["success"] == {"count": 1, "ns": 2}
    assert list(stats["inference_stats"]) == [
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    ]
