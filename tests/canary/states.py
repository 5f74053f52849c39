"""States of canaries for tests."""

from __future__ import annotations

from typing import Any

from model.canary.plan import Plan, Progress
from model.canary.state import Changes, Phase, State

NOW = 1_000_000.0


def make_state(**changes: Any) -> State:
    """A canary with 5 % of the traffic, changed."""
    fields: dict[str, Any] = {
        "id": "0123456789ab",
        "stable": "qwen3-vl",
        "canary": "qwen3-vl-canary",
        "changes": Changes(image="server:2"),
        "prometheus_url": "http://prometheus:9090",
        "plan": Plan(steps=(5, 25, 100)),
        "phase": Phase.PROGRESSING,
        "phase_started_at": NOW,
        "started_at": NOW,
        "progress": Progress(step_started_at=NOW),
    }
    return State(**{**fields, **changes})
