"""Every rule explains itself: presets, all choices, and rules of one's own."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import isabstract
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastweights.core import presets
from fastweights.core.algorithm import (
    Algorithm,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    Momentum,
    Nesterov,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import MLP, Architecture, GatedMLP, Matrix
from fastweights.core.bias import L2, LP, Bias, DotProduct, Omega
from fastweights.core.combinations import ALGORITHMS, ARCHITECTURES, BIASES, RETENTIONS, suited_rule
from fastweights.core.conformance_trial import make_trial
from fastweights.core.engine import run
from fastweights.core.explanation import Explanation, explain_preset, explain_rule, state_bytes, written
from fastweights.core.explanation_choices import (
    PAPERS,
    link_of,
    loss_of,
    network,
    of_algorithm,
    of_architecture,
    of_bias,
    of_retention,
    projection_of,
)
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    LQNorm,
    NoRetention,
    Reset,
    Retention,
    RowNorm,
    SoftThreshold,
    WeightDecay,
)
from fastweights.core.rule import Rule
from fastweights.core.types import Gates
from fastweights.errors import UserError

OURS = {"titans_swiglu", "softmax_attention"}
"""Presets that name no paper of their own."""

CHUNK = Rule(MLP(2, 2.0), L2(), chunk_size=4, read="chunk")
MORE = {
    "gates per channel": Rule(Matrix(), L2(False), WeightDecay("value"), Momentum("key"), lr_scope="value"),
    "decay first": Rule(MLP(3, 1.5, "tanh"), chunk_size=1, decay_before_grad=True),
    "decay first, by the loop": Rule(
        MLP(3, 1.5, "tanh"), retention=WeightDecay("key"), chunk_size=1, decay_before_grad=True
    ),
    "swiglu, read before": Rule(GatedMLP(1.5), read="before"),
    "nesterov": Rule(MLP(2, 1.5), algorithm=Nesterov("value")),
    "hope's own": presets.hope(4, 1.5, momentum=True),
    "hope": Rule(MLP(2, 1.5), algorithm=DeltaGradientDescent("map")),
    "orthogonal steps, no retain": replace(CHUNK, retention=NoRetention(), algorithm=NewtonSchulz()),
    "link at every token": Rule(MLP(2, 1.5), LP(2.0), LQNorm(link_at="token"), read="before"),
    "printed link": replace(CHUNK, retention=LQNorm(form="printed")),
    "thresholds": Rule(MLP(2, 1.5), retention=ElasticNet()),
    "hidden thresholds": replace(CHUNK, retention=SoftThreshold()),
    "chi squared": Rule(MLP(2, 1.5), retention=FDivergence()),
    "kl to the chunk before": Rule(MLP(2, 1.5), retention=FDivergence("kl", 2.0)),
    "bounded": replace(CHUNK, retention=Bounded()),
    "unit rows": Rule(MLP(2, 1.5), retention=RowNorm(unit=True, scope="head")),
    "reset": Rule(MLP(2, 1.5), retention=Reset(every=64)),
    "window, online": Rule(Matrix(), Omega(L2(half=False), 3), chunk_size=1),
    "steps, no retain": Rule(Matrix(), DotProduct(), NoRetention(), Steps(3), chunk_size=1, clip=None),
    "two local memories": replace(CHUNK, algorithm=Hierarchy((2, 4), 8, GradientDescent())),
}


def kinds(base: type[Any]) -> Iterator[type[Any]]:
    """The library's own classes of one choice."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("fastweights."):
            yield from () if isabstract(kind) else (kind,)
            yield from kinds(kind)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_explains_itself(name: str) -> None:
    rule = presets.PRESETS[name]()
    found = explain_preset(name)
    assert found.name == name
    assert found == explain_rule(rule)
    own = [paper for paper in found.papers if paper.what == "rule"]
    assert len(own) == (0 if name in OURS else 1)
    assert [paper.arxiv for paper in own] == [arxiv for arxiv in arxivs(found.summary) if own]
    assert found.tier == rule.tier
    assert (found.token_bytes > 0) is rule.grows
    whole(found)


def test_what_is_particular_to_a_preset_is_said_without_its_arguments() -> None:
    found = explain_preset("atlas")
    assert len(found.remarks) == 1
    assert "is chaotic" in found.remarks[0]
    assert " ".join(found.remarks[0].split()) in " ".join(found.text().split())
    (window,) = explain_preset("omega_net").remarks
    assert window == "Clipped: with several tokens in every step the published form is not stable at this lr."
    assert explain_preset("gated_deltanet").remarks == ()


def arxivs(summary: str) -> list[str]:
    """The paper that a preset's first sentence names."""
    return [arxiv for name, (_, arxiv) in PAPERS.items() if arxiv in summary or f"({name} " in summary][:1]


def whole(found: Explanation) -> None:
    """Whatever the rule: all four choices, every gate where the update uses it, nothing that JSON cannot hold."""
    assert [choice.choice for choice in found.choices] == ["architecture", "bias", "retention", "algorithm"]
    update, loop = "\n".join(found.equations), "\n".join(found.pseudo_code)
    for gate in found.gates:
        used = {"threshold": "threshold", "importance": "importance_i"}.get(gate.name, f"{gate.name}_t")
        assert used in update
        assert gate.name in found.pseudo_code[0] + found.pseudo_code[1]
        assert gate.numbers >= 1
    assert "y_t = " in update or "y_t  = " in update
    assert "_t" not in loop.replace("gelu_tanh", "")
    assert found.why
    text = found.text()
    assert max(len(line) for line in text.splitlines()) <= 130
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert json.loads(json.dumps(found.to_dict()))["tier"] == found.tier


@pytest.mark.parametrize("name", MORE)
def test_every_rule_explains_itself(name: str) -> None:
    rule = MORE[name]
    found = explain_rule(rule)
    assert len(found.gates) == sum(scope is not None for scope in rule.scopes)
    assert [gate.name for gate in found.gates] == [
        name for name, scope in zip(Gates._fields, rule.scopes, strict=True) if scope is not None
    ]
    whole(found)


def test_whatever_may_be_combined_explains_itself() -> None:
    values = list(product(ARCHITECTURES, BIASES, RETENTIONS, ALGORITHMS))[::97]
    explained = 0
    for one in values:
        with suppress(UserError):
            whole(explain_rule(suited_rule(*one)))
            explained += 1
    assert explained > len(values) // 3


def test_every_choice_says_what_it_buys() -> None:
    """A choice that is added to the library and forgotten here fails."""
    said = {Architecture: of_architecture, Bias: of_bias, Retention: of_retention, Algorithm: of_algorithm}
    for base, words in said.items():
        for kind in kinds(base):
            found = words(kind())  # type: ignore[operator]
            assert found.buys
            assert found.paper in PAPERS or not found.paper
    assert all(network(kind()) for kind in kinds(Architecture))
    assert all(loss_of(kind()).loss for kind in kinds(Bias))
    kept = [kind() for kind in kinds(Retention)]
    assert all(link_of(one) for one in kept if one.link_at is not None)
    assert all(projection_of(one) for one in kept if one.projects)


def test_a_state_is_counted_in_full() -> None:
    assert state_bytes(presets.deltanet()) == (4 * 64 * 64, 0)
    assert state_bytes(presets.titans(), 8) == (4 * 3 * 2 * 8 * 32, 0)
    assert state_bytes(presets.softmax_attention()) == (0, 4 * (64 + 64 + 1))


def test_an_unknown_name_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no rule named 'memoria'; did you mean memora\?"):
        explain_preset("memoria")
    with pytest.raises(UserError, match="there are titans, titans_linear"):
        explain_preset("?")


def test_choices_are_written_as_one_would_write_them() -> None:
    assert written(presets.titans().architecture) == "Residual(MLP())"
    assert written(Hierarchy((2, 4))) == "Hierarchy(local_chunks=(2, 4), Momentum())"


@dataclass(frozen=True)
class Blunt(Bias):
    """Every error counts alike.

    More about it.
    """

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return ((prediction - target).square() + 1e-6).sqrt().sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error = prediction - target
        return error * (error.square() + 1e-6).rsqrt()


@dataclass(frozen=True)
class Halved(Retention):
    scope: None = None

    link_at = "chunk"
    projects = True

    def begin(self, initial: Tensor) -> Tensor:
        return 2.0 * initial

    def link(self, dual: Tensor) -> Tensor:
        return 0.5 * dual


@dataclass(frozen=True)
class Late(Momentum):
    """Moves where a chunk opens."""

    coupling: Any = "deferred"

    def settle(self, dual: Tensor, momentum: Tensor) -> Tensor:
        return dual + momentum


@dataclass(frozen=True)
class Doubled(Architecture):
    """Twice a matrix."""

    def maps(self, key_dim: int, value_dim: int) -> Any:
        return Matrix().maps(key_dim, value_dim)

    def forward(self, linear: Any, x: Tensor) -> tuple[Tensor, Any]:
        return 2.0 * linear("matrix", x), None


def test_a_rule_of_ones_own_explains_itself() -> None:
    found = explain_rule(Rule(Doubled(), Blunt(), Halved(), Late(), chunk_size=4, read="chunk"))
    whole(found)
    assert (found.name, found.summary, found.remarks) == ("", "a rule of your own", ())
    assert [choice.buys for choice in found.choices] == [
        "Twice a matrix.",
        "Every error counts alike.",
        "a choice of your own, without a docstring",
        "Moves where a chunk opens.",
    ]
    assert found.tier == "dual, autograd"
    assert "no backward is written" in found.why
    assert "\n".join(found.pseudo_code) == textwrap.dedent("""\
        A ← Halved.begin(W₀)   S ← 0
        for every token (q, k, v, lr, momentum):
            if a chunk of 4 opens:
                A ← Late.settle(A, S)
                A ← Halved.project(A, W_c, W₀)
                W_c ← link(A)
            u ← clip(∂ℓ(W_c; k, v)/∂W)
            S ← momentum · S − lr · u
            y ← f(W_c, q)""")
    for line in ("f(W, x)    = Doubled(W, x)", "ℓ(W; k, v) = Blunt.loss(f(W, k), v)", "link(A)    = Halved.link(A)"):
        assert line in found.equations
    assert found.papers == ()


class Number:
    """A number, vector or matrix of the pseudo-code; what stands side by side is multiplied."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __matmul__(self, other: Number) -> Number:
        scalar = self.value.dim() == 0 or other.value.dim() == 0
        return Number(self.value * other.value if scalar else self.value @ other.value)

    def __add__(self, other: Number) -> Number:
        return Number(self.value + other.value)

    def __sub__(self, other: Number) -> Number:
        return Number(self.value - other.value)

    def __neg__(self) -> Number:
        return Number(-self.value)

    def inverse(self) -> Number:
        return Number(1.0 / self.value)


def runnable(formula: str) -> str:
    """A formula as Python over `Number`s."""
    tokens = re.findall(r"diag\(\w+\)|‖k‖²|⁻¹|[A-Za-zĀ]+ᵀ?|\d+|[()+−·]", formula)
    found = ""
    for before, token in zip(["+", *tokens], tokens, strict=False):
        beside = before not in ("(", "+", "−", "·") and token not in (")", "+", "−", "·", "⁻¹")
        written = {"−": "-", "·": "@", "⁻¹": ".inverse()"}.get(token, token)
        written = f"N[{token!r}]" if re.match(r"[\w‖]", token) else written
        found += ("@" if beside else "") + written
    return found


MATRIX = [
    "titans_linear",
    "linear_attention",
    "retnet",
    "gla",
    "mamba2",
    "hgrn2",
    "deltanet",
    "gated_deltanet",
    "longhorn",
    "rwkv7",
]


@pytest.mark.parametrize("name", MATRIX)
def test_the_pseudo_code_of_a_matrix_rule_is_the_rule(name: str) -> None:
    """Its lines are run as they stand, token by token, beside the engine."""
    rule = presets.PRESETS[name]()
    trial = make_trial(rule, 4, 3, heads=1)
    given = trial.inputs(trial.draw(1, 5, seed=1))
    answers, _, _ = run(rule, trial.initial, *given, trial.fresh(1))
    lines = [line.strip().partition("   #")[0] for line in explain_rule(rule).pseudo_code[2:]]
    known = {"A": Number(trial.initial[0][0]), "S": Number(torch.zeros(3, 4, dtype=torch.float64))}
    known |= {str(i): Number(torch.tensor(float(i), dtype=torch.float64)) for i in range(3)}
    for t in range(5):
        q, k, v = (x[0, 0, t][:, None] for x in given[:3])
        k, r = (k[:4], k[4:]) if rule.erase_key else (k, k)
        known |= {name: Number(x) for name, x in {"q": q, "k": k, "v": v, "r": r, "kᵀ": k.T, "rᵀ": r.T}.items()}
        known["‖k‖²"] = Number(k.square().sum())
        for gate, values in zip(Gates._fields, given.gates, strict=True):
            if values is not None:
                known |= {gate: Number(values[0, 0, t].squeeze()), f"diag({gate})": Number(values[0, 0, t].diag())}
        for line in lines:
            left, right = line.split(" ← ")
            known[left] = eval(runnable(right), {"N": known})
        torch.testing.assert_close(known["y"].value[:, 0], answers[0, 0, t], atol=1e-12, rtol=1e-12)


GOLDEN = {
    "titans": """\
        titans: Titans' neural memory (arXiv 2501.00663 eqs. 8-15; camera-ready section 3.3).

          A residual MLP with LayerNorm, squared error as printed (no half), momentum and weight decay with gates per
          linear map. The steps are small because the LayerNorm multiplies them: at the start the network's answers
          have a deviation near 0.06, and what reaches the weights goes with the inverse square of that.

        what each of the four choices buys
          architecture  Residual(MLP())
                        2 layers that all learn: relations a matrix cannot hold; answers stay one LayerNorm away from
                        the key
          bias          L2(half=False)
                        corrects errors, with a step twice as long: what is known writes nothing
          retention     WeightDecay(scope='map')
                        forgets as much as the token says, a number per head and map
          algorithm     Momentum(scope='map')
                        a surprising token goes on being written while the next are read

        equations
          q, k       = q / ‖q‖, k / ‖k‖   (by the layer)
          f(W, x)    = x + LN(W₂ gelu(W₁ x))
          ℓ(W; k, v) = ‖e‖²,  e = f(W, k) − v
          ∂ℓ/∂f      = 2 e
          where a chunk of 16 opens:
            W_c = A
          at every token:
            u_t = ∂ℓ(W_c; k_t, v_t)/∂W
            S_t = momentum_t · S_{t−1} − lr_t · u_t
            A_t = retain_t · A_{t−1} + S_t
            y_t = f(A_t, q_t)

        pseudo-code
          A ← W₀   S ← 0
          for every token (q, k, v, lr, momentum, retain):
              if a chunk of 16 opens:
                  W_c ← A
              u ← ∂ℓ(W_c; k, v)/∂W
              S ← momentum · S − lr · u
              A ← retain · A + S
              y ← f(A, q)

        gates
          lr        per map  2 numbers  0 to 0.02  size of the step; 0 writes nothing
          momentum  per map  2 numbers  0 to 1     how much of the past surprise goes on; 0 forgets it
          retain    per map  2 numbers  0 to 1     what is kept of the memory, 1 all and 0 nothing

        runs on
          dual: gates are numbers per head or map, so every token's weights are applied without being formed

        state of a head of 64
          393,216 bytes, 98,304 numbers

        papers: the rule's own, and those that its choices are taken from
          rule          Titans: Learning to Memorize at Test Time (arXiv 2501.00663), eqs. 8-15; camera-ready section
                        3.3
          architecture  Titans, camera-ready section 3.3
          bias          Titans, eq. 12
          retention     Titans, eq. 13
          algorithm     Titans, eq. 10
        """,
    "gated_deltanet": """\
        gated_deltanet: Gated DeltaNet (arXiv 2412.06464): the delta rule with the gradient at the decayed memory.

        what each of the four choices buys
          architecture  Matrix()
                        one matrix: the cheapest to write and to read; tells about as many keys apart as they have
                        channels
          bias          L2()
                        corrects errors: what is known already writes nothing
          retention     WeightDecay()
                        forgets as much as the token says, a number per head
          algorithm     GradientDescent()
                        one step a token, and no state beside the memory

        equations
          q, k       = q / ‖q‖, k / ‖k‖   (by the layer)
          f(W, x)    = W x
          ℓ(W; k, v) = ½ ‖e‖²,  e = f(W, k) − v
          ∂ℓ/∂f      = e
          at every token:
            Ā_t = retain_t · A_{t−1}
            u_t = (Ā_t k_t − v_t) k_tᵀ
            A_t = Ā_t − lr_t · u_t
            y_t = A_t q_t

        pseudo-code
          A ← W₀
          for every token (q, k, v, lr, retain):
              Ā ← retain · A
              u ← (Ā k − v) kᵀ
              A ← Ā − lr · u
              y ← A q

        gates
          lr      per head  1 number  0 to 1  size of the step; 0 writes nothing
          retain  per head  1 number  0 to 1  what is kept of the memory, 1 all and 0 nothing

        runs on
          delta: a matrix's gradient at the present weights is affine in them: a block of tokens is one triangular
          solve

        state of a head of 64
          16,384 bytes, 4,096 numbers

        papers: the rule's own, and those that its choices are taken from
          rule          Gated Delta Networks: Improving Mamba2 with Delta Rule (arXiv 2412.06464)
          architecture  MIRAS, table 1
          bias          Titans, appendix C
          retention     Titans, eq. 13
          algorithm     Titans, eq. 8
        """,
    "memora": """\
        memora: Memora (MIRAS eqs. 27, 30): squared error, KL and entropy on the simplex, with the chunk's lag token.

          Rows of every map are positive and sum to total: with a residual and LayerNorm around them they can express
          negative answers. Logits move far less than weights do, hence the large lr.

        what each of the four choices buys
          architecture  Residual(MLP())
                        2 layers that all learn: relations a matrix cannot hold; answers stay one LayerNorm away from
                        the key
          bias          L2()
                        corrects errors: what is known already writes nothing
          retention     KLDivergence(scope='map')
                        weights are shares: what one gains, the others of its row lose
          algorithm     GradientDescent()
                        one step a token, and no state beside the memory

        equations
          q, k       = q / ‖q‖, k / ‖k‖   (by the layer)
          f(W, x)    = x + LN(W₂ gelu(W₁ x))
          ℓ(W; k, v) = ½ ‖e‖²,  e = f(W, k) − v
          ∂ℓ/∂f      = e
          clip(u)    = u · min(1, 1 / ‖u‖), over all maps together
          link(A)    = softmax(A), row by row
          where a chunk of 16 opens:
            A   = A − log Σ exp(A), row by row
            W_c = link(A)
          at every token:
            u_t = clip(∂ℓ(W_c; k_t, v_t)/∂W)
            A_t = retain_t · A_{t−1} − lr_t · u_t
            W_c = link(A_t)   (after the chunk's first token only: the lag token)
            y_t = f(W_c, q_t)

        pseudo-code
          A ← W₀
          for every token (q, k, v, lr, retain):
              if a chunk of 16 opens:
                  A ← A − log Σ exp(A), row by row
                  W_c ← link(A)
              u ← clip(∂ℓ(W_c; k, v)/∂W)
              A ← retain · A − lr · u
              W_c ← link(A)   # after the chunk's first token only: the lag token
              y ← f(W_c, q)

        gates
          lr      per map  2 numbers  0 to 10  size of the step; 0 writes nothing
          retain  per map  2 numbers  0 to 1   what is kept of the memory, 1 all and 0 nothing

        runs on
          dual: gates are numbers per head or map, so every token's weights are applied without being formed; what is
          not linear acts only where a chunk opens

        state of a head of 64
          262,144 bytes, 65,536 numbers

        papers: the rule's own, and those that its choices are taken from
          rule          It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and
                        Online Optimization (arXiv 2504.13173), eqs. 27, 30
          architecture  Titans, camera-ready section 3.3
          bias          Titans, appendix C
          retention     MIRAS, eqs. 21, 27, 30
          algorithm     Titans, eq. 8
        """,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_text_of(name: str) -> None:
    assert explain_preset(name).text() + "\n" == textwrap.dedent(GOLDEN[name])
