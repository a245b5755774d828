"""`TrainConfig`: everything that decides what a training run computes, as one frozen value.

A recipe is a function ``recipe() -> TrainConfig``. Two runs with equal configurations on the same machine and torch
version end with equal weights, bit for bit, however often either was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.train.overrides import apply_overrides
from fastweights.train.task import Task

__all__ = [
    "CheckpointConfig",
    "ConfigError",
    "EvaluationConfig",
    "HintConfig",
    "OptimiserConfig",
    "PriceConfig",
    "Probe",
    "SkipConfig",
    "Stage",
    "TrainConfig",
    "apply_overrides",
]


class ConfigError(UserError):
    """A training configuration that cannot be run, or cannot be read."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of the curriculum.

    Attributes:
        steps: optimiser steps, >= 1.
        length: positions per row and step (T), >= 1.
        batch_size: rows (B), >= 1.
        segments: 1 trains every batch from an empty memory. More makes one batch ``segments * length`` long and reads
            it in that many steps, each starting from the detached state in which the one before ended (truncated
            backpropagation that carries the state). ``steps`` must be a multiple.
        task: what this stage trains on, or None for the run's own task.
    """

    steps: int
    length: int
    batch_size: int
    segments: int = 1
    task: Task | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "length", "batch_size", "segments"):
            _require(getattr(self, name) >= 1, f"a stage's {name} must be at least 1, not {getattr(self, name)}")
        whole = self.steps % self.segments == 0
        _require(whole, f"a stage's steps ({self.steps}) must be a multiple of its segments ({self.segments})")

    @property
    def tokens(self) -> int:
        """Positions read in the whole stage, padding included."""
        return self.steps * self.length * self.batch_size


OptimiserKind = Literal["adamw", "muon", "delta", "deep", "m3"]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """An optimiser: linear warm-up, cosine decay to ``final_fraction * lr``, and a clip on the global gradient norm.

    ``clip = inf`` never clips. Loshchilov & Hutter 2019 (decoupled decay); which parameters decay is the model's
    business (`LanguageModel.parameter_groups`). ``kind`` other than ``adamw`` trains those that decay, the matrices of
    the blocks, and AdamW the rest: torch's ``muon``, or a memory of gradients (`fastweights.train.memory_optimisers`),
    ``delta``, ``deep`` or ``m3``.
    """

    kind: OptimiserKind = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 100
    final_fraction: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(OptimiserKind)
        _require(self.kind in known, f"optimiser.kind must be one of {', '.join(known)}, not {self.kind!r}")
        _require(0 < self.lr < math.inf, f"optimiser.lr must be above 0 and finite, not {self.lr}")
        _require(all(0 <= b < 1 for b in self.betas), f"optimiser.betas must lie in [0, 1), not {self.betas}")
        _require(0 < self.eps < math.inf, f"optimiser.eps must be above 0 and finite, not {self.eps}")
        decay = self.weight_decay
        _require(0 <= decay < math.inf, f"optimiser.weight_decay must be 0 or more and finite, not {decay}")
        _require(self.warmup_steps >= 0, f"optimiser.warmup_steps must not be negative, not {self.warmup_steps}")
        fraction = self.final_fraction
        _require(0 <= fraction <= 1, f"optimiser.final_fraction must lie in [0, 1], not {fraction}")
        _require(self.clip > 0, f"optimiser.clip must be above 0 (inf for no clip), not {self.clip}")


@dataclass(frozen=True, kw_only=True)
class SkipConfig:
    """Which steps leave the weights alone, and when to give up.

    A step is skipped when its loss or gradient norm is not finite, or when the norm exceeds ``factor`` times the larger
    of the clip and the median norm of the last ``window`` steps. The clip is in that bound because a model that has
    learnt its task has a tiny median, and the rare batch that it gets wrong is the one worth learning from.
    ``limit`` skips in a row end the run.
    """

    factor: float = 20.0
    window: int = 64
    limit: int = 20

    def __post_init__(self) -> None:
        _require(self.factor > 1, f"skip.factor must be above 1, not {self.factor}")
        _require(self.window >= 1, f"skip.window must be at least 1, not {self.window}")
        _require(self.limit >= 1, f"skip.limit must be at least 1, not {self.limit}")


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """A price on touching the memory: ``price * mean(lr / largest_lr + (1 - retain))`` is added to the loss.

    The mean runs over memory layers, heads and real tokens, so it lies in [0, 2]. The price is 0 until the fraction
    ``start`` of all steps, rises linearly, and stays at ``value`` from the fraction ``end`` on. It teaches gates that
    can shut to shut on what need not be kept, which is what makes a memory's reach independent of training length.
    """

    value: float = 0.0
    start: float = 0.3
    end: float = 0.7

    def __post_init__(self) -> None:
        _require(0 <= self.value < math.inf, f"price.value must be 0 or more and finite, not {self.value}")
        inside = 0 <= self.start <= self.end <= 1
        _require(inside, f"price.start and price.end must satisfy 0 <= start <= end <= 1, not {self.start}, {self.end}")


@dataclass(frozen=True, kw_only=True)
class HintConfig:
    """A lesson for a middle block: ``weight * cross-entropy`` of the batch's hints is added to the loss.

    The residual stream behind block ``block`` (from 0), normalised, is compared with the embeddings: at a position with
    hints it should be near those tokens. It teaches the blocks before a memory to gather what the memory's key needs, a
    plateau that the loss on answers alone leaves only slowly. Off when the weight is 0, and from the fraction ``end``
    of all steps on.
    """

    block: int = 0
    weight: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _require(self.block >= 0, f"hint.block must not be negative, not {self.block}")
        _require(self.weight >= 0, f"hint.weight must not be negative, not {self.weight}")
        _require(0 <= self.end <= 1, f"hint.end must lie in [0, 1], not {self.end}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save: every ``every_steps`` steps and every ``every_minutes`` minutes (0 turns either off).

    The end of a run and Ctrl-C always save. The newest ``keep`` checkpoints stay on disk. Nothing here changes what is
    computed, so a run may be resumed with other values.
    """

    every_steps: int = 0
    every_minutes: float = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.every_steps >= 0, f"checkpoint.every_steps must not be negative, not {self.every_steps}")
        _require(self.every_minutes >= 0, f"checkpoint.every_minutes must not be negative, not {self.every_minutes}")
        _require(self.keep >= 1, f"checkpoint.keep must be at least 1, not {self.keep}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One test during training: ``batches`` batches of a task that training never sees (they use another seed).

    What is asked after training may be read several batches at a time.
    """

    name: str
    length: int
    batch_size: int
    batches: int = 1
    task: Task | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "a probe needs a name")
        for name in ("length", "batch_size", "batches"):
            _require(getattr(self, name) >= 1, f"a probe's {name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Probes to run every ``every`` steps and at the end (0: at the end only)."""

    every: int = 0
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"evaluation.every must not be negative, not {self.every}")
        names = [probe.name for probe in self.probes]
        _require(len(set(names)) == len(names), f"evaluation.probes must have different names, not {names}")


class Place(NamedTuple):
    """Where a step stands in the curriculum."""

    number: int
    stage: Stage
    document: int
    segment: int


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        model: the model to build.
        task: where batches come from (stages may name their own).
        stages: the curriculum, in order.
        seed: decides the initial weights and every batch.
        label_smoothing: share of each target that goes to all of the vocabulary alike, in [0, 1) (Szegedy et al. 2016,
            section 7). Cross-entropy alone is content once an answer is far on the right side; with a share above 0 it
            is least at one finite margin, which every answer is drawn to. The loss that is logged has it in; no probe
            does.
        precision: ``bfloat16`` keeps the model's parameters in bfloat16 and trains a float32 copy of each.
        recompute: run blocks again in the backward pass instead of keeping what they computed: less memory, more time.
        compile: let torch.compile fuse parts of the layers (:func:`fastweights.core.compiled.use_compiler`); needs a
            C++ compiler, and without one the run goes on eagerly. Which shapes are compiled depends on what the process
            met first, so a resumed run may differ in the last bits.
        device: a torch device, such as ``cpu`` or ``cuda``.
        threads: torch threads, 0 for torch's choice. Bit-identical results need equal numbers of threads.
        start_from: name or folder of a model, or folder of a run (its newest checkpoint), whose weights to start from;
            empty for fresh weights.
        log_every: steps per line of ``log.jsonl``.
    """

    model: ModelConfig
    task: Task
    stages: tuple[Stage, ...]
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    price: PriceConfig = field(default_factory=PriceConfig)
    hint: HintConfig = field(default_factory=HintConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    compile: bool = False
    device: str = "cpu"
    threads: int = 0
    start_from: str = ""
    log_every: int = 10

    def __post_init__(self) -> None:
        _require(len(self.stages) >= 1, "a training run needs at least one stage")
        _require(0 <= self.seed < 2**63, f"seed must lie in [0, 2**63), not {self.seed}")
        _require(self.threads >= 0, f"threads must not be negative, not {self.threads}")
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, f"label_smoothing must lie in [0, 1), not {smoothing}")
        priced = self.price.value == 0 or self.model.has_memory
        _require(priced, f"price.value must be 0 for a model of wiring {self.model.wiring!r}: it writes to no memory")
        last = self.model.depth - 1
        _require(self.hint.block <= last, f"hint.block must be at most {last}, the last block, not {self.hint.block}")
        _require(self.log_every >= 1, f"log_every must be at least 1, not {self.log_every}")

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Positions of all stages together, padding included."""
        return sum(stage.tokens for stage in self.stages)

    def place(self, step: int) -> Place:
        """The stage, the document and the segment of step ``step`` (0 <= step < steps).

        Documents are numbered through the whole run, so no two stages ever ask a task for the same one.
        """
        documents = 0
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                document, segment = divmod(step, stage.segments)
                return Place(index, stage, documents + document, segment)
            step -= stage.steps
            documents += stage.steps // stage.segments
        raise IndexError(f"step {step} lies behind the last stage")

    def tokens_after(self, step: int) -> int:
        """Positions still to be read once ``step`` steps are done."""
        left = 0
        for stage in self.stages:
            left += max(0, stage.steps - max(0, step)) * stage.length * stage.batch_size
            step -= stage.steps
        return left

    def to_json(self) -> str:
        """The configuration as JSON text; `from_json` reads it back to an equal value."""
        return json.dumps(_plain(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read what `to_json` wrote. Task classes are found by name among the subclasses of `Task` now imported.

        Raises:
            ConfigError: for text that is not such JSON, unknown keys or an unknown task.
        """
        try:
            config = _build(cls, json.loads(text), "config")
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ConfigError(f"this is not a training configuration: {error}") from error
        assert isinstance(config, cls)
        return config


def _plain(value: Any) -> Any:
    """Turn a configuration into dicts, lists and numbers; tasks carry the name of their class."""
    if isinstance(value, ModelConfig):
        return json.loads(value.to_json())
    if dataclasses.is_dataclass(value):
        named = {"type": type(value).__name__} if isinstance(value, Task) else {}
        return named | {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _build(hint: Any, data: Any, where: str) -> Any:
    """The inverse of `_plain` for a field declared as ``hint``."""
    if get_origin(hint) in (Union, types.UnionType):
        if data is None:
            return None
        inner = [h for h in get_args(hint) if h is not type(None)]
        return _build(inner[0], data, where) if len(inner) == 1 else data
    if hint is ModelConfig:
        return ModelConfig.from_json(json.dumps(data))
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))
    if not dataclasses.is_dataclass(hint):
        return float(data) if hint is float else data
    assert isinstance(hint, type)
    values = dict(data)
    cls = _task_class(values.pop("type", None), where) if issubclass(hint, Task) else hint
    hints = get_type_hints(cls)
    unknown = set(values) - {f.name for f in dataclasses.fields(cls) if f.init}
    _require(not unknown, f"{where} has no setting named {', '.join(sorted(unknown))}")
    return cls(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in values.items()})


def _task_class(name: str | None, where: str) -> type:
    found = [cls for cls in _subclasses(Task) if cls.__name__ == name]
    _require(len(found) >= 1, f"{where} is a task of type {name!r}, which is not among the tasks imported here")
    return found[-1]


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = cls.__subclasses__()
    for inner in subclasses:
        yield inner
        yield from _subclasses(inner)
