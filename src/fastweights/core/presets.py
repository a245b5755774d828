"""Published models as rules, named as in their papers.

Presets that reproduce a published rule have no clip, since the papers have none; ``titans_swiglu``, which is ours, has
one. The default rule of ``ModelConfig`` and the named sizes have it too.
"""

from __future__ import annotations

from collections.abc import Callable

from fastweights.core.algorithm import GradientDescent, Momentum
from fastweights.core.architecture import MLP, GatedMLP, Matrix, Residual
from fastweights.core.bias import L2, DotProduct
from fastweights.core.retention import NoRetention, WeightDecay
from fastweights.core.rule import Rule


def titans(depth: int = 2, expansion: float = 4.0, chunk_size: int = 16) -> Rule:
    """Titans' neural memory (arXiv 2501.00663 eqs. 8-15; camera-ready section 3.3).

    A residual MLP with LayerNorm, squared error as printed (no half), momentum and weight decay with gates per linear
    map.
    """
    return Rule(
        architecture=Residual(MLP(depth, expansion)),
        bias=L2(half=False),
        retention=WeightDecay("map"),
        algorithm=Momentum("map"),
        lr_scope="map",
        chunk_size=chunk_size,
        lr_max=0.1,
        clip=None,
    )


def titans_linear() -> Rule:
    """Titans with a matrix for memory, gradients at the current weights (Titans appendix C)."""
    return Rule(Matrix(), L2(), WeightDecay(), Momentum(), chunk_size=1, clip=None)


def titans_swiglu(expansion: float = 2.0, chunk_size: int = 16) -> Rule:
    """Titans' update on a SwiGLU memory."""
    return Rule(GatedMLP(expansion), L2(), WeightDecay(), Momentum(), chunk_size=chunk_size, lr_max=0.1)


def linear_attention() -> Rule:
    """Linear attention (arXiv 2006.16236): Hebbian writes to a matrix, nothing forgotten."""
    return Rule(Matrix(), DotProduct(), NoRetention(), GradientDescent(), chunk_size=1, clip=None, normalise_qk=False)


def deltanet() -> Rule:
    """DeltaNet (arXiv 2406.06484): the delta rule, one online step of 1/2 ||Ak - v||^2 without decay."""
    return Rule(Matrix(), L2(), NoRetention(), GradientDescent(), chunk_size=1, clip=None)


def gated_deltanet() -> Rule:
    """Gated DeltaNet (arXiv 2412.06464): the delta rule with the gradient at the decayed memory."""
    return Rule(Matrix(), L2(), WeightDecay(), GradientDescent(), chunk_size=1, clip=None, decay_before_grad=True)


PRESETS: dict[str, Callable[[], Rule]] = {
    "titans": titans,
    "titans_linear": titans_linear,
    "titans_swiglu": titans_swiglu,
    "linear_attention": linear_attention,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
}
