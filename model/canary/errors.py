"""What ends a command, each with the exit status that scripts tell them apart by."""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_DONE: Final = 0
EXIT_CLUSTER: Final = 1
EXIT_USAGE: Final = 2
EXIT_ROLLED_BACK: Final = 3
EXIT_REFUSED: Final = 4


class CanaryError(Exception):
    """What a command cannot do; its text is for the operator."""

    exit_status: ClassVar[int] = EXIT_CLUSTER


class ClusterError(CanaryError):
    """The API server does not answer, or not as it should: unreachable, forbidden, invalid."""


class Unreachable(ClusterError):
    """The API server is away for now: a run that goes on asks again."""


class NotFound(ClusterError):
    """An object that is not there."""


class Conflict(ClusterError):
    """The object was written by somebody else since it was read."""


class UsageError(CanaryError):
    """Arguments that contradict each other or name nothing."""

    exit_status = EXIT_USAGE


class Refused(CanaryError):
    """The state of the canary does not allow the command; nothing was changed."""

    exit_status = EXIT_REFUSED
