"""What a run tells while it goes: one `StepRecord` a step, and the lines of ``log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from fastweights.errors import UserError
from fastweights.models.durable import write_file
from fastweights.train.loss import AnswerCounts, GateUse


class StepRecord(NamedTuple):
    """One optimiser step.

    Attributes:
        step: steps done, this one included (1 at the first).
        steps: steps of the whole run.
        stage: index of the curriculum's stage.
        length: positions per row.
        loss: weighted cross-entropy in nats a token, without the price and the hints.
        answers: how many predictions inside answers were right.
        price: mean use of the gates in [0, 2], 0 while nothing is charged.
        price_weight: what that use is multiplied with.
        gates: use per memory layer, or None when it was not measured.
        gradient_norm: before clipping.
        lr: the optimiser's learning rate.
        tokens: real tokens read in this step.
        skipped: why the step left the weights alone; empty for a sound step.
        skips: skipped steps so far in the run.
        seconds: wall time of this step.
        elapsed: wall time of the run so far, over all its processes.
        seconds_left: an estimate for the rest of the run, from the tokens still to read.
    """

    step: int
    steps: int
    stage: int
    length: int
    loss: float
    answers: AnswerCounts
    price: float
    price_weight: float
    gates: GateUse | None
    gradient_norm: float
    lr: float
    tokens: int
    skipped: str
    skips: int
    seconds: float
    elapsed: float
    seconds_left: float

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second in this step."""
        return self.tokens / max(self.seconds, 1e-9)

    def to_plain(self) -> list[Any]:
        """The record as JSON values; `from_plain` takes it back."""
        return [value if not isinstance(value, tuple) else list(value) for value in self]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> StepRecord:
        """Rebuild a record that `to_plain` took apart."""
        fields = dict(zip(cls._fields, plain, strict=True))
        right, chosen, right_at, chosen_at, exact, answers = fields["answers"]
        fields["answers"] = AnswerCounts(right, chosen, tuple(right_at), tuple(chosen_at), exact, answers)
        if fields["gates"] is not None:
            fields["gates"] = GateUse(*(tuple(layer) for layer in fields["gates"]))
        return cls(**fields)


def accuracy(counts: Sequence[AnswerCounts]) -> dict[str, Any]:
    """Shares over several batches: of tokens, by place in the answer (``accuracy_at``), of whole answers (``exact``).

    A share without a single case is None (``accuracy_at`` just ends there).
    """
    at = zip(*(c.right_at for c in counts), strict=True), zip(*(c.chosen_at for c in counts), strict=True)
    shares = [_share(sum(right), sum(chosen)) for right, chosen in zip(*at, strict=True)]
    return {
        "accuracy": _share(sum(c.right for c in counts), sum(c.chosen for c in counts)),
        "accuracy_at": [share for share in shares if share is not None],
        "exact": _share(sum(c.exact for c in counts), sum(c.answers for c in counts)),
    }


def _share(part: int, whole: int) -> float | None:
    return None if whole == 0 else _short(part / whole)


def _short(value: float) -> float:
    """Five significant digits: enough to read, short to store."""
    return float(f"{value:.5g}")


def _mean(values: Sequence[float]) -> float:
    return _short(sum(values) / len(values))


def summarise(window: Sequence[StepRecord]) -> dict[str, Any]:
    """The log line for the steps of ``window``, oldest first: means over the window, the rest from its last step.

    Skipped steps count in ``skipped`` and nowhere else.
    """
    last, sound = window[-1], [record for record in window if not record.skipped]
    line: dict[str, Any] = {"kind": "steps", "step": last.step, "stage": last.stage, "length": last.length}
    if sound:
        line |= {"loss": _mean([r.loss for r in sound])} | accuracy([r.answers for r in sound])
        line |= {"price": _mean([r.price for r in sound]), "gradient_norm": _mean([r.gradient_norm for r in sound])}
    gates = next((r.gates for r in reversed(window) if r.gates is not None), None)
    if gates is not None:
        line |= {name: [_short(x) for x in layers] for name, layers in gates._asdict().items()}
    seconds = sum(r.seconds for r in window)
    return line | {
        "price_weight": _short(last.price_weight),
        "lr": _short(last.lr),
        "skipped": last.skips,
        "tokens_per_second": _short(sum(r.tokens for r in window) / max(seconds, 1e-9)),
        "seconds": round(last.elapsed, 3),
        "seconds_left": round(last.seconds_left, 1),
    }


class LogError(UserError):
    """The log cannot be written."""


class LogFile:
    """``log.jsonl``: one JSON object a line, handed to the system as it is written.

    Args:
        path: the file.
        step: steps that the run has done; lines of later steps (written after the checkpoint that the run resumes
            from) and a torn last line are dropped first.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        try:
            if path.exists():
                kept = [line for line in _whole_lines(path) if line["step"] <= step]
                write_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            # Unbuffered, so that a full disk shows at the line that no longer fits and not when the file is closed.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            LogError: when the disk is full.
        """
        try:
            self._file.write((json.dumps(line) + "\n").encode())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> LogError:
        return LogError(f"the log {self._path} could not be written: {error.strerror}")

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a ``log.jsonl``, oldest first."""
    return _whole_lines(path)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
