"""The rules that are compared, by name: presets, and rules that are still to become presets."""

from __future__ import annotations

from fastweights.core.algorithm import ConjugateGradient, GradientDescent, Steps
from fastweights.core.architecture import MLP, Matrix, Residual
from fastweights.core.bias import L2, DotProduct
from fastweights.core.presets import PRESETS
from fastweights.core.retention import NoRetention, WeightDecay
from fastweights.core.rule import Rule


def _online(bias: L2 | DotProduct, retention: NoRetention | WeightDecay) -> Rule:
    return Rule(Matrix(), bias, retention, GradientDescent(), chunk_size=1, clip=None)


def _ttt(inner: Matrix | MLP) -> Rule:
    memory = Residual(inner, eps=1e-6, affine=True)
    return Rule(memory, L2(), NoRetention(), GradientDescent(), chunk_size=16, clip=None)


# Once a preset of the name exists, its line here goes.
LATER: dict[str, Rule] = {
    "retnet": _online(DotProduct(), WeightDecay()),
    "mamba2": _online(DotProduct(), WeightDecay()),
    "gla": _online(DotProduct(), WeightDecay("key")),
    "hgrn2": _online(DotProduct(), WeightDecay("key")),
    "kda": Rule(Matrix(), L2(), WeightDecay("key"), GradientDescent(), 1, clip=None, decay_before_grad=True),
    "rwkv7": Rule(Matrix(), L2(), WeightDecay("key"), GradientDescent(), 1, clip=None, lr_scope="key", erase_key=True),
    "deltaproduct": Rule(Matrix(), L2(), WeightDecay(), Steps(2), 1, clip=None, decay_before_grad=True),
    "mesa": Rule(Matrix(), L2(), WeightDecay(), ConjugateGradient(), 1, clip=None),
    "ttt_linear": _ttt(Matrix(bias=True)),
    "ttt_mlp": _ttt(MLP(activation="gelu_tanh", bias=True)),
}


def rule(name: str) -> Rule:
    """The rule of a name."""
    return LATER[name] if name in LATER else PRESETS[name]()
