"""Values that are kept in the cluster as JSON: checked when read, never changed in place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


def to_text(seconds: float) -> str:
    """Seconds since the epoch as Kubernetes writes a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _from_text(value: object) -> object:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


# A time as the pure parts reckon with it, and as people read it in the annotation.
Instant = Annotated[float, BeforeValidator(_from_text), PlainSerializer(to_text, when_used="json")]


class Frozen(BaseModel):
    """A value of plain fields. An unknown field is refused: it would be lost at the next write."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
