"""When the stages of an analysis began, and when they were last heard of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """A reporter that notes it, and prints remarks."""

    begun: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:  # noqa: ARG002
        now = time.monotonic()
        self.begun.setdefault(stage, now)
        self.last[stage] = now

    def note(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        print(text, flush=True)

    def seconds(self, stage: str) -> float:
        """From when a stage began to when it was last heard of."""
        return self.last[stage] - self.begun[stage]
