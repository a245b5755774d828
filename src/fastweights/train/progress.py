"""One line of text that says how a run is going; whoever shows it decides how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastweights.train.records import StepRecord

_KEEP = 0.9


class ProgressLine:
    """Running means over about ten steps, as text.

    Example:
        >>> line = ProgressLine()
        >>> train(config, "runs/first", on_step=lambda record: print(line.text(record)))
    """

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def text(self, record: StepRecord) -> str:
        """``step 120/2000 · length 512 · loss 1.234 · right 56.7% · 6,100 tokens/s · 35:10 left``."""
        parts = [f"step {record.step}/{record.steps}", f"length {record.length}"]
        if not record.skipped:
            self._follow("loss", record.loss)
            if record.answers.chosen:
                self._follow("right", record.answers.right / record.answers.chosen)
        self._follow("pace", record.tokens_per_second)
        if "loss" in self._means:
            parts.append(f"loss {self._means['loss']:.3f}")
        if "right" in self._means:
            parts.append(f"right {self._means['right']:.1%}")
        if record.price_weight > 0:
            parts.append(f"price {record.price:.3f}")
        if record.skips:
            parts.append(f"{record.skips} skipped")
        return " · ".join([*parts, f"{self._means['pace']:,.0f} tokens/s", f"{duration(record.seconds_left)} left"])

    def _follow(self, name: str, value: float) -> None:
        self._means[name] = _KEEP * self._means.get(name, value) + (1 - _KEEP) * value


def evaluation_text(step: int, metrics: Mapping[str, Any]) -> str:
    """``step 200: short/accuracy 0.91, short/loss 0.3``; lists (accuracy by place) stay in the log."""
    numbers = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
    return f"step {step}: {', '.join(numbers)}"


def duration(seconds: float) -> str:
    """``95`` as ``1:35`` and ``7265`` as ``2:01:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
