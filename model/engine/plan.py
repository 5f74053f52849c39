"""One step while it is being filled: what is scheduled so far, and what is left of its budgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.engine.batch import ScheduledBatch, ScheduledImage

if TYPE_CHECKING:
    from model.engine.batch import ScheduledSequence
    from model.engine.sequence import Sequence


@dataclass(slots=True)
class StepPlan:
    """Shares and images of a step, and its budgets; decodes were paid for before it was made.

    max_prefill_tokens: of the whole step; prefill_tokens, encoder_tokens: what is left of theirs
    prefills: sequences whose prompts are being computed, in the order they are served
    """

    max_prefill_tokens: int
    encoder_tokens: int
    prefills: list[Sequence]
    prefill_tokens: int = field(init=False)
    encoder_used: bool = False
    shares: list[ScheduledSequence] = field(default_factory=list)
    images: list[ScheduledImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefill_tokens = self.max_prefill_tokens

    def batch(self) -> ScheduledBatch:
        """What was planned."""
        return ScheduledBatch(tuple(self.shares), tuple(self.images))

    def take_images(self, sequence: Sequence, num_tokens: int) -> int:
        """Plan the images of the next num_tokens tokens; returns how many of them can be computed.

        A chunk is cut before the first image that this step cannot encode.
        """
        start = sequence.num_computed_tokens
        images = sequence.request.images
        for index in range(sequence.num_encoded_images, len(images)):
            image = images[index]
            if image.offset >= start + num_tokens:
                break
            if image.end <= start:  # its KV was found in the prefix cache
                continue
            if self._is_over_budget(image.num_tokens):
                return max(0, image.offset - start)
            self.encoder_used = True
            self.encoder_tokens -= image.num_tokens
            self.images.append(ScheduledImage(sequence, index))
            sequence.num_encoded_images = index + 1
        return num_tokens

    def starts_with_blocked_image(self, sequence: Sequence, start: int) -> bool:
        """Whether the first token to compute is of an image that must wait for the next step."""
        return self.encoder_used and any(
            image.offset <= start < image.end and self._is_over_budget(image.num_tokens)
            for image in sequence.request.images
        )

    def forget_images(self, sequence: Sequence) -> None:
        """Encode nothing for a sequence that was preempted after all."""
        self.images = [image for image in self.images if image.sequence is not sequence]

    def _is_over_budget(self, num_tokens: int) -> bool:
        # The first image of a step always goes, or one larger than the budget would wait forever.
        return self.encoder_used and num_tokens > self.encoder_tokens
