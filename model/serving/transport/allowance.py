"""How much of a cheap but tiring thing a client may do. Pure: the clock is an argument."""

from __future__ import annotations


class Allowance:
    """`burst` at once, and `per_second` more as time goes by; never more than `burst` saved."""

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._at = now

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount`; False when that is more than what is left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        self._left -= amount
        return self._left >= 0

    def earn(self, amount: float) -> None:
        """Allow `amount` more, as the return for something useful."""
        self._left = min(self._burst, self._left + amount)
