"""Values that are kept in the cluster as JSON: checked when read, never changed in place."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value of plain fields. An unknown field is refused: it would be lost at the next write."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
