"""Optimisers that are memories of gradients (Nested Learning section 4): delta momentum, deep momentum, M3.

For matrices ``[outputs, inputs]``, which every one of them treats alike; a model's other parameters stay with AdamW, as
is usual with Muon. Every step has the root mean square `RMS`, about what AdamW's have, so that one learning rate
suits all; weight decay is decoupled. The state is tensors alone, float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastweights.core.algorithm import newton_schulz
from fastweights.errors import UserError

RMS = 0.2
"""Root mean square of a step, in units of the learning rate (arXiv 2502.16982, section 2.2)."""


class MatrixOptimiser(torch.optim.Optimizer):
    """What the three share: decoupled weight decay, and a step of a fixed size along the direction.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.
        options: of the kind.

    Raises:
        UserError: a parameter is no matrix.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, options: dict[str, Any]) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay} | options)
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise UserError(f"{type(self).__name__} trains matrices; a parameter has shape {list(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the parameters' gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(self.begin(p, group))
                direction = self.direction(p.grad.float(), state, group)
                size = torch.linalg.vector_norm(direction) / direction.numel() ** 0.5
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.sub_(direction * (group["lr"] * RMS / (size + 1e-12)))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the memory stays in float32 where torch would bring it to the parameters' dtype."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for key, p in zip(keys, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                self.state[p][name] = value.to(self.state[p][name].device, copy=True)

    @abstractmethod
    def begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The memory before the first gradient."""

    @abstractmethod
    def direction(self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        """Learns the gradient ``g [outputs, inputs]``, and returns what the step goes against."""


class DeltaMomentum(MatrixOptimiser):
    """A momentum that corrects itself (eqs. 48, 49): ``m <- m (alpha - beta u^T u) + g``, ``u = g / |g|``.

    The squared-error memory of gradients: what the momentum holds along the directions in which the present gradient
    writes is taken out first. Printed with g itself, whose length would decide whether it is stable; of unit length the
    factor stays in [alpha - beta, alpha].

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled.
        alpha: how much of the momentum is kept, in [0, 1].
        beta: how much of the old is taken out along the new gradient, in [0, 1].
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, alpha: float = 0.95, beta: float = 0.5
    ) -> None:
        super().__init__(params, lr, weight_decay, {"alpha": alpha, "beta": beta})

    def begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p, dtype=torch.float32)}

    def direction(self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        m, u = state["momentum"], g / (torch.linalg.matrix_norm(g) + 1e-12)
        # The narrower side first: m u^T u costs outputs x inputs x min(outputs, inputs) twice.
        taken = (m @ u.T) @ u if g.shape[0] <= g.shape[1] else m @ (u.T @ u)
        m.mul_(group["alpha"]).sub_(taken, alpha=group["beta"]).add_(g)
        return m


class DeepMomentum(MatrixOptimiser):
    """Deep momentum gradient descent (eq. 50): a network remembers gradients, and answers to this one.

    One network for each matrix, ``M(u) = u + A tanh(B u)`` on the rows of the gradient brought to unit root mean
    square. It learns ``|M(u) - s|^2 / 2`` with decay, one step for every gradient, where s is a running mean of
    gradients: what has been seen again and again is passed on, and what is noise against it is taken away. The step
    goes against ``s + M(u)``, with the network as it is then. The paper prints ``L2(m; u, 1)`` and leaves the target's
    meaning open; ``docs/equations.md`` has the alternatives.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled.
        alpha: what the network keeps of its weights A in a step.
        inner_lr: of the network.
        mean: what the running mean keeps.
        width: of its hidden layer, at most the gradient's inputs.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        alpha: float = 0.99,
        inner_lr: float = 0.3,
        mean: float = 0.95,
        width: int = 64,
    ) -> None:
        options = {"alpha": alpha, "inner_lr": inner_lr, "mean": mean, "width": width}
        super().__init__(params, lr, weight_decay, options)

    def begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        inputs, width = p.shape[1], min(group["width"], p.shape[1])
        generator = torch.Generator(device="cpu").manual_seed(0)
        inner = torch.randn(width, inputs, generator=generator).to(p.device) * inputs**-0.5
        outer = torch.zeros(inputs, width, device=p.device)
        mean, count = torch.zeros_like(p, dtype=torch.float32), torch.zeros((), dtype=torch.int64)
        return {"inner": inner, "outer": outer, "mean": mean, "count": count}

    def direction(self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        inner, outer = state["inner"], state["outer"]
        state["count"] += 1
        scale = g.numel() ** 0.5 / (torch.linalg.matrix_norm(g) + 1e-12)
        u = g * scale
        mean = state["mean"].mul_(group["mean"]).add_(u, alpha=1.0 - group["mean"])
        mean = mean / (1.0 - group["mean"] ** int(state["count"]))
        hidden = torch.tanh(u @ inner.T)
        error = (u + hidden @ outer.T - mean) / len(u)
        pulled = (error @ outer) * (1.0 - hidden.square())
        size = group["inner_lr"] / hidden.square().sum(1).mean().clamp_min(1.0)
        outer.mul_(group["alpha"]).sub_(error.T @ hidden, alpha=float(size))
        inner.sub_(pulled.T @ u, alpha=float(group["inner_lr"] / u.square().sum(1).mean().clamp_min(1.0)))
        return mean + u + torch.tanh(u @ inner.T) @ outer.T


class M3(MatrixOptimiser):
    """Multi-scale momentum Muon (Algorithm 1, eq. 75): a fast and a slow momentum, both orthogonalised.

    ``M1 <- beta1 M1 + (1 - beta1) g`` at every step, ``M2 <- beta3 M2 + (1 - beta3) mean(g)`` of the last ``period``
    steps after each of them, ``V`` a mean of squares; the step goes against ``(NS(M1) + share NS(M2)) / sqrt(V)``.
    Algorithm 1 prints plain sums, which forget nothing; running means are what its betas suggest.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled.
        betas: of the fast momentum, of the squares, of the slow momentum.
        share: weight of the slow momentum.
        period: steps between updates of the slow momentum.
        iterations: of Newton-Schulz.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float, float] = (0.95, 0.95, 0.9),
        share: float = 0.5,
        period: int = 16,
        iterations: int = 5,
    ) -> None:
        options = {"betas": betas, "share": share, "period": period, "iterations": iterations}
        super().__init__(params, lr, weight_decay, options)

    def begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        names = ("fast", "slow", "sum", "squares")
        zeros = {name: torch.zeros_like(p, dtype=torch.float32) for name in names}
        return zeros | {"count": torch.zeros((), dtype=torch.int64)}

    def direction(self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        fast, seen, slowly = group["betas"]
        state["count"] += 1
        count, period = int(state["count"]), group["period"]
        state["fast"].mul_(fast).add_(g, alpha=1.0 - fast)
        state["squares"].mul_(seen).addcmul_(g, g, value=1.0 - seen)
        state["sum"].add_(g)
        if count % period == 0:
            state["slow"].mul_(slowly).add_(state["sum"], alpha=(1.0 - slowly) / period)
            state["sum"].zero_()
        both = newton_schulz(state["fast"], group["iterations"], 1e-12)
        if count >= period:
            both = both + group["share"] * newton_schulz(state["slow"], group["iterations"], 1e-12)
        root = (state["squares"] / (1.0 - seen**count)).sqrt()
        return both / (root / root.mean().clamp_min(1e-20) + 1e-3)
