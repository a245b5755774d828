"""The configuration of a language model: a frozen dataclass that round-trips through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from fastweights.core.algorithm import ConjugateGradient
from fastweights.core.architecture import MLP, Residual
from fastweights.core.rule import Rule, rule_from_dict
from fastweights.core.self_modifying import SelfModifying
from fastweights.errors import UserError
from fastweights.layers.continuum import Form
from fastweights.layers.memory import GateStart
from fastweights.layers.self_modifying import Generator, Values, require_counting

Wiring = Literal["lmm", "mac", "mag", "mal", "self_modifying", "attention", "window", "lstm", "mamba"]
Recall = Literal["aligned", "pooled"]
Start = Literal["plain", "induction", "counting"]
LevelOptimiser = Literal["sgd", "momentum", "muon"]


@dataclass(frozen=True)
class ModelConfig:
    """A model of the family.

    Attributes:
        vocab_size: entries of the tokenizer.
        dim: width D.
        depth: blocks.
        heads: heads of the attention.
        memory_heads: heads of each memory layer, 0 for as many as the attention has.
        memory_head_dim: size of a memory's keys and values, 0 for ``dim`` divided by its heads. What a linear memory
            can hold without confusing it grows with this number.
        wiring: memory alone (``lmm``), as context (``mac``), as gate (``mag``) or as layer (``mal``); a memory that
            makes its own keys, values and gates (``self_modifying``, as in Hope); or one without such a memory, to
            compare with: ``attention`` over the whole document, over a sliding ``window``, an ``lstm``, or the
            selective state space of ``mamba``.
        rule: the memory rule, where there is a memory. Its inner gradient is clipped by default: stability is on.
        generator_chunk: tokens that share one anchor of the memories that make keys, values and gates
            (``self_modifying``); the rule's chunk size and it divide one another.
        adaptive: which of those learn in context, with commas (``self_modifying``).
        values: of length 1 (``unit``), or no longer than 1 along the key and across it (``bounded``), which lets a
            memory count and turn exactly (``self_modifying``).
        expansion: hidden width of the blocks' networks as a multiple of ``dim``.
        levels: chunks of a continuum memory system in every block, with commas, the fastest first (``16,64,256``): its
            networks learn the text's next tokens while it is read. A chunk of 0 is a network that never changes; empty
            is the plain one.
        level_form: how the networks of a block are put together, and whether faster levels start again
            (`fastweights.layers.continuum.Continuum`, `fastweights.models.hope`).
        level_optimiser: what makes a step of the gradient.
        level_order: 2 trains through the levels' gradients; 1 takes them as given numbers (first-order meta-learning),
            which is cheaper, and step sizes and starts are learned all the same.
        level_step: largest step size of a level; the step itself is learned.
        level_clip: bound on the norm of a level's gradient, a mean over the tokens of its chunk, over all blocks.
        convolution: taps of the short convolution in front of the memory.
        window: tokens seen by sliding-window attention (``mag``, ``mal``, ``window``).
        segment: tokens of an attention segment (``mac``), a multiple of the rule's chunk size.
        persistent: learned tokens in front of every attention window or segment (not of ``attention``).
        recall: ``aligned`` recalls one token for each token of the segment, ``pooled`` a few for the segment before
            (``mac``).
        memory_tokens: recalled tokens in ``pooled`` mode, a divisor of ``segment``.
        gate_threshold: below this (before rescaling) a gate of the memory is exactly 0.
        lr_start: where the lr gate starts, as a share of its head's :attr:`largest_lr`.
        lr_last: the longest step of the last of several memory heads, as a share of the first one's, those between
            geometrically apart; 0: all reach equally far.
        momentum_start: where the momentum gate starts.
        forget_start: bias that the forget gate starts from; -4 starts shut.
        start: initial values: ``plain``; ``induction``, see :func:`~fastweights.models.titans.start_by_copying`; or
            ``counting``, see `fastweights.layers.self_modifying.SelfModifyingTitans.start_counting`.
        tied: the head shares the embedding's weights.
        embedding_std: spread of the initial embeddings.

    Raises:
        UserError: values that contradict each other.
    """

    vocab_size: int = 4096
    dim: int = 128
    depth: int = 2
    heads: int = 4
    memory_heads: int = 0
    memory_head_dim: int = 0
    wiring: Wiring = "mag"
    rule: Rule = Rule(Residual(MLP()))
    generator_chunk: int = 16
    adaptive: str = "key,value,lr,retain"
    values: Values = "unit"
    expansion: float = 8 / 3
    levels: str = ""
    level_form: Form = "sequential"
    level_optimiser: LevelOptimiser = "sgd"
    level_order: int = 2
    level_step: float = 1.0
    level_clip: float = 1.0
    convolution: int = 4
    window: int = 64
    segment: int = 64
    persistent: int = 4
    recall: Recall = "aligned"
    memory_tokens: int = 16
    gate_threshold: float = 0.05
    lr_start: float = 0.5
    lr_last: float = 0.0
    momentum_start: float = 0.1
    forget_start: float = -4.0
    start: Start = "plain"
    tied: bool = False
    embedding_std: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            fits = type(value) in ((int, float) if kind is float else (kind,))
            _require(fits, f"{field.name} must be of type {kind.__name__}; it is {value!r}")
        for name in ("vocab_size", "dim", "depth", "heads", "window", "segment", "convolution"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(0 <= self.lr_last <= 1, f"lr_last must lie in [0, 1], not {self.lr_last}")
        _require(self.persistent >= 0, f"persistent must be 0 or more, not {self.persistent}")
        for name in ("memory_heads", "memory_head_dim"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 or more, not {getattr(self, name)}")
        _require(self.dim % self.heads == 0, f"dim {self.dim} is not divisible by {self.heads} heads")
        _require(
            self.memory_head_dim > 0 or self.dim % (self.memory_heads or self.heads) == 0,
            f"dim {self.dim} is not divisible by {self.memory_heads} memory heads",
        )
        for name in ("expansion", "embedding_std", "level_step", "level_clip"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        known = ", ".join(get_args(Wiring))
        _require(self.wiring in get_args(Wiring), f"wiring must be one of {known}, not {self.wiring!r}")
        _require(self.recall in get_args(Recall), f"recall must be aligned or pooled, not {self.recall!r}")
        for name, own in (("start", "counting"), ("values", "bounded")):
            fits = getattr(self, name) != own or self.wiring == "self_modifying"
            _require(fits, f"{name}={own!r} is for wiring='self_modifying', not {self.wiring!r}")
        choices = ("level_form", Form), ("level_optimiser", LevelOptimiser), ("start", Start), ("values", Values)
        for name, kinds in choices:
            given = getattr(self, name)
            _require(given in get_args(kinds), f"{name} must be one of {', '.join(get_args(kinds))}, not {given!r}")
        _require(self.level_order in (1, 2), f"level_order must be 1 or 2, not {self.level_order}")
        self._check_levels()
        made = {part.strip() for part in self.adaptive.split(",")}
        known = ", ".join(get_args(Generator))
        _require(made <= set(get_args(Generator)), f"adaptive names some of {known}, not {self.adaptive!r}")
        if self.start == "counting":
            require_counting(self.rule, self.values, self.memory_heads or self.heads, made)
        if self.wiring == "mac":
            chunk = self.rule.chunk_size
            _require(
                self.segment % chunk == 0,
                f"segment {self.segment} must be a multiple of the rule's chunk size {chunk}",
            )
            if self.recall == "pooled":
                _require(
                    1 <= self.memory_tokens <= self.segment and self.segment % self.memory_tokens == 0,
                    f"memory_tokens must divide the segment {self.segment}; it is {self.memory_tokens}",
                )

    def _check_levels(self) -> None:
        """Chunks rise, each a multiple of the first; those that never change come last."""
        wrong = (
            f"levels must be chunk sizes with commas, the fastest first, such as 16,64,256; they are {self.levels!r}"
        )
        _require(not self.levels or all(part.strip().isdigit() for part in self.levels.split(",")), wrong)
        moving = [chunk for chunk in self.level_chunks if chunk]
        _require(self.level_chunks == (*moving, *[0] * (len(self.level_chunks) - len(moving))), wrong)
        twice = self.level_order == 2 and bool(moving) and self.has_memory
        solved = isinstance(self.rule.algorithm, ConjugateGradient)
        _require(not (twice and solved), "a memory that solves by conjugate gradients needs levels of level_order=1")
        nested = all(b % a == 0 for a, b in pairwise(moving))
        _require(
            moving == sorted(moving) and nested,
            f"every level's chunk must be a multiple of the faster one's before it; the levels are {self.levels!r}",
        )

    @property
    def level_chunks(self) -> tuple[int, ...]:
        """The chunk of every level, 0 where it never changes; empty without a continuum."""
        return tuple(int(part) for part in self.levels.split(",")) if self.levels else ()

    @property
    def learns(self) -> bool:
        """Whether something changes while it reads: a memory, or levels."""
        return self.has_memory or any(self.level_chunks)

    @property
    def has_memory(self) -> bool:
        """Whether the model has a memory that follows ``rule``."""
        return self.wiring in ("lmm", "mac", "mag", "mal", "self_modifying")

    @property
    def largest_lr(self) -> tuple[float, ...]:
        """What each head of a memory layer makes of an lr gate that is wide open, where nothing is forgotten.

        One number for all heads where there is no such gate: everything is written whole.
        """
        if not self.has_memory or self.rule.scopes[0] is None:
            return (1.0,)
        if self.wiring == "self_modifying":
            carried = SelfModifying(self.rule, self.generator_chunk, ()).carried
            first = min(self.rule.lr_max, 1.0) * float(carried.stable_lr(None, own_targets=True))
        else:
            first = self.rule.lr_max * float(self.rule.stable_lr(None))
        heads = self.memory_heads or self.heads
        return tuple(first * reach for reach in GateStart(lr_last=self.lr_last).reaches(heads) or heads * (1.0,))

    @property
    def grows(self) -> bool:
        """Whether its state grows with the document."""
        return self.rule.grows if self.has_memory else self.wiring == "attention"

    @property
    def hidden(self) -> int:
        """Hidden width of the blocks' networks, rounded up to a multiple of :attr:`hidden_step`."""
        return -(-round(self.dim * self.expansion) // self.hidden_step) * self.hidden_step

    @property
    def hidden_step(self) -> int:
        """16; less where a block has several networks, so that models can be given equal sizes."""
        return {0: 16, 1: 16, 2: 8}.get(len(self.level_chunks), 4)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return asdict(replace(self)) | {"rule": self.rule.to_dict()}

    def to_json(self) -> str:
        """The configuration as JSON text; :meth:`from_json` is its inverse."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Builds a configuration from :meth:`to_dict`.

        Raises:
            UserError: an unknown field or value.
        """
        known = {f.name for f in fields(ModelConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"a model's configuration has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        values = dict(values)
        if isinstance(values.get("rule"), dict):
            try:
                values["rule"] = rule_from_dict(values["rule"])
            except TypeError as error:
                raise UserError(f"the model's rule has a value of a wrong type: {error}") from error
        return ModelConfig(**values)

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """Builds a configuration from :meth:`to_json`.

        Raises:
            UserError: text that is not JSON, or an unknown field or value.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"the model's configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError("the model's configuration must be a JSON object")
        return ModelConfig.from_dict(values)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
