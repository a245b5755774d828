"""The optimiser of the slow weights: its schedule, float32 copies of bfloat16 parameters, and skipped steps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastweights.errors import FastweightsError
from fastweights.models.language_model import LanguageModel
from fastweights.train.config import ConfigError, OptimiserConfig, PriceConfig, SkipConfig
from fastweights.train.memory_optimisers import M3, DeepMomentum, DeltaMomentum


class TrainingStopped(FastweightsError):
    """Training cannot go on; the message says what happened and what to try."""


def learning_rate(step: int, steps: int, config: OptimiserConfig) -> float:
    """The rate of step ``step`` (0 <= step < steps): linear warm-up, then half a cosine down to the final fraction.

    The first step has ``lr / warmup_steps``, step ``warmup_steps - 1`` has ``lr``, the last step has
    ``final_fraction * lr``.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / span)))
    return config.lr * (config.final_fraction + (1 - config.final_fraction) * cosine)


def price_at(step: int, steps: int, config: PriceConfig) -> float:
    """The price on writing at step ``step``: 0, then a linear rise, then ``config.value`` (see `PriceConfig`)."""
    done = step / steps
    if done < config.start:
        return 0.0
    if done >= config.end:
        return config.value
    return config.value * (done - config.start) / (config.end - config.start)


def warm_levels(step: int, steps: int) -> float:
    """How warm a continuum's steps are at step ``step``: from 0.1 up to 1 in the first tenth of training.

    As TTT-E2E does (arXiv 2512.23675): steps are large for weights that training has not prepared for them.
    """
    return min(1.0, 0.1 + 0.9 * step / max(1.0, 0.1 * steps))


class Optimiser:
    """AdamW, or what the configuration names, over a model's parameters, in float32 whatever the model's dtype.

    A float32 parameter is updated in place. For any other parameter a float32 copy is trained and written back after
    each step, since steps of size lr vanish in bfloat16 (8 bits).

    Args:
        model: its ``parameter_groups`` say what decays. Its parameters must already have their final dtype and device.
        config: rates and decay; the learning rate itself is given to `step`.
        masters: float32 values by parameter name to start from instead of the model's own (used when resuming).
        extra: parameters beside the model's that are trained with it, by a name that no parameter of the model has.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: OptimiserConfig,
        masters: Mapping[str, Tensor] | None = None,
        extra: Mapping[str, torch.nn.Parameter] | None = None,
    ) -> None:
        self._extra = frozenset(extra or {})
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        names |= {id(parameter): name for name, parameter in (extra or {}).items()}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        groups = []
        beside = [{"params": list(extra.values()), "weight_decay": 0.0}] if extra else []
        for group in [*model.parameter_groups(config.weight_decay), *beside]:
            trained = []
            for parameter in group["params"]:
                name = names[id(parameter)]
                given = None if masters is None else masters[name].to(parameter.device)
                trained.append(self._add(name, parameter, given))
            groups.append({**group, "params": trained})
        self._clip = config.clip
        self._gradients: list[Tensor] = []
        self._optimisers = _optimisers(groups, config)

    def _add(self, name: str, parameter: torch.nn.Parameter, given: Tensor | None) -> Tensor:
        if given is not None:
            with torch.no_grad():
                parameter.copy_(given)
        if parameter.dtype == torch.float32:
            master: Tensor = parameter
        else:
            master = (parameter.detach().float() if given is None else given.float().clone()).requires_grad_()
        self._pairs[name] = (parameter, master)
        return master

    @torch.no_grad()
    def collect(self) -> float:
        """Bring the gradients to the float32 copies and return their global norm, before any clipping."""
        for parameter, master in self._pairs.values():
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self._gradients = [m.grad for _, m in self._pairs.values() if m.grad is not None]
        return float(torch.nn.utils.get_total_norm(self._gradients)) if self._gradients else 0.0

    @torch.no_grad()
    def step(self, lr: float, norm: float) -> None:
        """Clip the collected gradients of global norm ``norm`` and apply one step of rate ``lr``."""
        if norm > self._clip:
            torch._foreach_mul_(self._gradients, self._clip / norm)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        for parameter, master in self._pairs.values():
            if master is not parameter:
                parameter.copy_(master)

    def clear(self) -> None:
        """Forget all gradients."""
        self._gradients = []
        for parameter, master in self._pairs.values():
            parameter.grad = master.grad = None

    def masters(self) -> dict[str, Tensor]:
        """The float32 values of every parameter of the model, by name (references, not copies)."""
        return {name: master.detach() for name, (_, master) in self._pairs.items() if name not in self._extra}

    def extras(self) -> dict[str, Tensor]:
        """The float32 values of the parameters trained beside the model."""
        return {name: self._pairs[name][1].detach() for name in sorted(self._extra)}

    def tensors(self) -> dict[str, Tensor]:
        """The optimisers' own state, by ``parameter name/field``."""
        return {
            f"{name}/{field}": value
            for name, (_, master) in self._pairs.items()
            for optimiser in self._optimisers
            for field, value in optimiser.state.get(master, {}).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned in an earlier process."""
        for key, value in tensors.items():
            name, field = key.rsplit("/", 1)
            master = self._pairs[name][1]
            self._owner(master).state[master][field] = value.to(master.device).clone()

    def _owner(self, master: Tensor) -> torch.optim.Optimizer:
        """Which of the optimisers trains a parameter."""
        for optimiser in self._optimisers:
            if any(master is p for group in optimiser.param_groups for p in group["params"]):
                return optimiser
        raise AssertionError("every parameter is in a group")


def _optimisers(groups: list[dict[str, Any]], config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all groups, or another optimiser for the first, whose parameters are matrices."""

    def adamw(some: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(some, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)

    if config.kind == "adamw" or not groups[0]["params"]:
        return [adamw(groups)]
    decay = groups[0]["weight_decay"]
    if config.kind == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"optimiser.kind=muon needs torch 2.9 or newer; this is {torch.__version__}")
        matrices = groups[0]["params"]
        own: torch.optim.Optimizer = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    else:
        own = {"delta": DeltaMomentum, "deep": DeepMomentum, "m3": M3}[config.kind](
            groups[0]["params"], config.lr, decay
        )
    return [own, adamw(groups[1:])]


class SkipGuard:
    """Decides which steps to skip (see `SkipConfig`); its whole state is `facts`, plain numbers."""

    def __init__(self, config: SkipConfig, clip: float) -> None:
        self._config = config
        self._clip = clip if math.isfinite(clip) else 0.0
        self._norms: deque[float] = deque(maxlen=config.window)
        self._in_a_row = 0
        self.skipped = 0

    def judge(self, loss: float, norm: float) -> str:
        """Why this step must be skipped, or an empty text when it is sound.

        Args:
            loss: the step's loss.
            norm: its gradient norm before clipping.

        Raises:
            TrainingStopped: when this is the last of ``limit`` skips in a row.
        """
        reason = self._reason(loss, norm)
        if math.isfinite(norm):
            # An outlier enters the median too: norms that have grown for good stop being outliers.
            self._norms.append(norm)
        if not reason:
            self._in_a_row = 0
            return ""
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self._config.limit:
            raise TrainingStopped(
                f"{self._in_a_row} steps in a row had to be skipped, the last because {reason}; "
                f"go back to the last checkpoint with a smaller optimiser.lr"
            )
        return reason

    def new_stage(self) -> None:
        """Forget the norms seen: another length or task has another typical norm."""
        self._norms.clear()

    def facts(self) -> dict[str, object]:
        """The state as JSON values; `load_facts` takes it back."""
        return {"norms": list(self._norms), "in_a_row": self._in_a_row, "skipped": self.skipped}

    def load_facts(self, facts: Mapping[str, object]) -> None:
        """Take over what `facts` returned in an earlier process."""
        norms, in_a_row, skipped = facts["norms"], facts["in_a_row"], facts["skipped"]
        assert isinstance(norms, list) and isinstance(in_a_row, int) and isinstance(skipped, int)
        self._norms = deque(norms, maxlen=self._config.window)
        self._in_a_row, self.skipped = in_a_row, skipped

    def _reason(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"its loss was {loss}"
        if not math.isfinite(norm):
            return f"its gradient norm was {norm}"
        if not self._norms:
            return ""
        bound = self._config.factor * max(self._clip, statistics.median(self._norms))
        return f"its gradient norm {norm:.3g} was above {bound:.3g}" if norm > bound else ""
