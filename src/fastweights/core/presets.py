"""Published models as rules, named as in their papers.

Presets that reproduce a published rule have no clip, since the papers have none; ``titans_swiglu``, which is ours, has
one, and so have those whose published form is not stable without (their docstrings say so). The default rule of
``ModelConfig`` and the named sizes have it too. Chunk sizes are small enough for short documents; papers that use
larger ones are quoted.
"""

from __future__ import annotations

from collections.abc import Callable

from fastweights.core.algorithm import (
    Attention,
    ConjugateGradient,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    Momentum,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import MLP, Architecture, GatedMLP, Matrix, Residual, Skip
from fastweights.core.bias import L2, LP, Bias, DotProduct, Huber, Omega
from fastweights.core.features import Polynomial
from fastweights.core.retention import KLDivergence, LQNorm, NoRetention, Retention, RowNorm, WeightDecay
from fastweights.core.rule import Rule


def titans(depth: int = 2, expansion: float = 4.0, chunk_size: int = 16) -> Rule:
    """Titans' neural memory (arXiv 2501.00663 eqs. 8-15; camera-ready section 3.3).

    A residual MLP with LayerNorm, squared error as printed (no half), momentum and weight decay with gates per linear
    map. The steps are small because the LayerNorm multiplies them: at the start the network's answers have a deviation
    near 0.06, and what reaches the weights goes with the inverse square of that.
    """
    return Rule(
        architecture=Residual(MLP(depth, expansion)),
        bias=L2(half=False),
        retention=WeightDecay("map"),
        algorithm=Momentum("map"),
        lr_scope="map",
        chunk_size=chunk_size,
        lr_max=0.02,
        clip=None,
    )


def titans_linear() -> Rule:
    """Titans with a matrix for memory, gradients at the current weights (Titans appendix C)."""
    return Rule(Matrix(), L2(), WeightDecay(), Momentum(), chunk_size=1, clip=None)


def titans_swiglu(expansion: float = 2.0, chunk_size: int = 16) -> Rule:
    """Titans' update on a SwiGLU memory."""
    return Rule(GatedMLP(expansion), L2(), WeightDecay(), Momentum(), chunk_size=chunk_size, lr_max=0.1)


def moneta(p: float = 3.0, q: float = 4.0, chunk_size: int = 16) -> Rule:
    """Moneta (MIRAS, arXiv 2504.13173 eq. 24): an L_p bias and L_q retention; gradient descent, no momentum.

    The link acts at chunk starts, as in the paper's parallel form. It multiplies steps by about the root of a map's
    size, hence the small lr. Clipped: the gradient of an L_3 loss grows with the square of the error.
    """
    return _miras(LP(p), LQNorm(q, scope="map"), chunk_size, read="chunk", lr_max=0.01, clip=1.0)


def yaad(chunk_size: int = 16) -> Rule:
    """Yaad (MIRAS eq. 26): Huber's mixture with a learned threshold for every token, and weight decay."""
    return _miras(Huber("mixture"), WeightDecay("map"), chunk_size, read="after", lr_max=0.1, clip=None)


def memora(total: float = 1.0, chunk_size: int = 16) -> Rule:
    """Memora (MIRAS eqs. 27, 30): squared error, KL and entropy on the simplex, with the chunk's lag token.

    Rows of every map are positive and sum to ``total``: with a residual and LayerNorm around them they can express
    negative answers. Logits move far less than weights do, hence the large lr.
    """
    return _miras(L2(), KLDivergence("map", total), chunk_size, read="chunk", lr_max=10.0, clip=1.0)


def _miras(bias: Bias, retention: Retention, chunk_size: int, read: str, lr_max: float, clip: float | None) -> Rule:
    return Rule(
        architecture=Residual(MLP(2, 4.0)),
        bias=bias,
        retention=retention,
        algorithm=GradientDescent(),
        lr_scope="map",
        chunk_size=chunk_size,
        read=read,  # type: ignore[arg-type]
        lr_max=lr_max,
        clip=clip,
    )


def linear_attention() -> Rule:
    """Linear attention (arXiv 2006.16236): Hebbian writes to a matrix, nothing forgotten."""
    return _hebbian(NoRetention(), fixed=("lr",))


def retnet() -> Rule:
    """RetNet (arXiv 2307.08621): linear attention with a decay of its own for every head, the same for all tokens."""
    return _hebbian(WeightDecay(), fixed=("lr", "retain"))


def gla() -> Rule:
    """Gated linear attention (arXiv 2312.06635): a decay for every token and key channel."""
    return _hebbian(WeightDecay("key"), fixed=("lr",))


def mamba2() -> Rule:
    """Mamba-2's state space duality (arXiv 2405.21060): ``A_t = retain_t A_{t-1} + lr_t v k^T``, one number each."""
    return _hebbian(WeightDecay())


def hgrn2() -> Rule:
    """HGRN2 (arXiv 2404.07904): gated linear attention whose key is what is forgotten, ``k = 1 - retain``."""
    return _hebbian(WeightDecay("key"), fixed=("lr",), tied=True)


def _hebbian(retention: Retention, fixed: tuple[str, ...] = (), tied: bool = False) -> Rule:
    return Rule(
        architecture=Matrix(),
        bias=DotProduct(),
        retention=retention,
        algorithm=GradientDescent(),
        chunk_size=1,
        clip=None,
        normalise_qk=False,
        fixed=fixed,
        tied=tied,
    )


def deltanet() -> Rule:
    """DeltaNet (arXiv 2406.06484): the delta rule, one online step of 1/2 ||Ak - v||^2 without decay."""
    return Rule(Matrix(), L2(), NoRetention(), GradientDescent(), chunk_size=1, clip=None)


def gated_deltanet(negative: bool = False) -> Rule:
    """Gated DeltaNet (arXiv 2412.06464): the delta rule with the gradient at the decayed memory.

    Args:
        negative: lr up to 2, so that eigenvalues reach -1, which state tracking needs (arXiv 2411.12537).
    """
    lr_max = 2.0 if negative else 1.0
    return Rule(
        Matrix(),
        L2(),
        WeightDecay(),
        GradientDescent(),
        chunk_size=1,
        clip=None,
        decay_before_grad=True,
        lr_max=lr_max,
    )


def longhorn() -> Rule:
    """Longhorn (arXiv 2407.14207): the implicit step of the delta rule, stable for any lr and any length of the keys.

    The full matrix; the paper's layer keeps its diagonal.
    """
    return Rule(Matrix(), L2(), NoRetention(), ImplicitStep(), chunk_size=1, clip=None, normalise_qk=False)


def rwkv7() -> Rule:
    """RWKV-7 (arXiv 2503.14456): decay and erasure per key channel, with an erased key apart from the written one.

    ``A_t = A_{t-1} (diag(retain_t) - e_t (lr_t * e_t)^T) + v_t k_t^T``; lr is the paper's in-context learning rate.
    Only the erased key has unit length.
    """
    return Rule(
        Matrix(),
        L2(),
        WeightDecay("key"),
        GradientDescent(),
        chunk_size=1,
        clip=None,
        lr_scope="key",
        erase_key=True,
        normalise_qk=False,
    )


def deltaproduct(steps: int = 2) -> Rule:
    """Gated DeltaProduct (arXiv 2502.10297): several delta steps a token, eigenvalues in [-1, 1]."""
    return Rule(
        Matrix(),
        L2(),
        WeightDecay(),
        Steps(steps),
        chunk_size=1,
        clip=None,
        decay_before_grad=True,
        lr_max=2.0,
    )


def ttt_linear(chunk_size: int = 16) -> Rule:
    """TTT-Linear (arXiv 2407.04620): ``x + LN(W x + b)`` learns ``v`` by plain gradient descent.

    Its target v - k is that of the part behind the residual. lr is at most 0.6: the base rate of 1 is divided by a
    head size of 64 in the paper's code, whose W_0 starts from 0.02, 6.25 times as small as here, and behind a LayerNorm
    the step is worth the square of that. The factor 1 / i belongs to the token that reads and is left out.
    """
    return _ttt(Matrix(bias=True), 0.6, chunk_size)


def ttt_mlp(chunk_size: int = 16) -> Rule:
    """TTT-MLP (arXiv 2407.04620): as :func:`ttt_linear` with two layers and a tenth of its base rate."""
    return _ttt(MLP(2, 4.0, "gelu_tanh", bias=True), 0.06, chunk_size)


def _ttt(inner: Architecture, lr_max: float, chunk_size: int) -> Rule:
    return Rule(
        architecture=Residual(inner, eps=1e-6, affine=True),
        bias=L2(),
        retention=NoRetention(),
        algorithm=GradientDescent(),
        chunk_size=chunk_size,
        lr_max=lr_max,
        clip=None,
        normalise_qk=False,
    )


def lact(expansion: float = 2.0, chunk_size: int = 16) -> Rule:
    """LaCT (arXiv 2505.23884): a SwiGLU memory with a dot-product bias, Muon steps and rows of constant length.

    A chunk is answered by the memory before it and then written (the paper: chunks of 2,048 tokens and more, beside
    sliding-window attention). Momentum is a gate per token here, one per chunk there; Newton-Schulz has Muon's three
    coefficients in every iteration, where LaCT's code has others in each. Steps are half as long as LaCT's, which are 1
    and, taken at every token (chunk size 1), make rounding grow a millionfold within 33 tokens.
    """
    return Rule(
        architecture=GatedMLP(expansion),
        bias=DotProduct(),
        retention=RowNorm(),
        algorithm=NewtonSchulz(step=0.5),
        chunk_size=chunk_size,
        read="chunk",
        clip=None,
    )


def mesa(iterations: int = 30) -> Rule:
    """MesaNet (arXiv 2506.05233): the discounted least-squares optimum for every query, by conjugate gradients."""
    return Rule(Matrix(), L2(), WeightDecay(), ConjugateGradient(iterations), chunk_size=1, clip=None)


def dla(chunk_size: int = 16) -> Rule:
    """Deep linear attention (Atlas, arXiv 2505.23735 section 3): Hebbian writes to an MLP."""
    return Rule(
        architecture=Residual(MLP(2, 4.0)),
        bias=DotProduct(),
        retention=WeightDecay(),
        algorithm=GradientDescent(),
        chunk_size=chunk_size,
        lr_max=0.1,
        clip=1.0,
    )


def omega_net(window: int = 4, degree: int = 2, expansion: float = 0.25, chunk_size: int = 16) -> Rule:
    """OmegaNet (Atlas eq. 10): an MLP over polynomial features that writes the last tokens again at every token.

    Clipped: with several tokens in every step the published form is not stable at this lr.

    Args:
        window: tokens written at every step, Atlas' c.
        degree: of the polynomial features.
        expansion: of the MLP, a multiple of the number of features, which is about K^degree / degree!.
        chunk_size: tokens that share an anchor.
    """
    return Rule(
        architecture=Residual(Polynomial(MLP(2, expansion), degree)),
        bias=Omega(L2(), window),
        retention=WeightDecay(),
        algorithm=GradientDescent(),
        chunk_size=chunk_size,
        lr_max=0.1,
    )


def atlas(window: int = 4, degree: int = 2, expansion: float = 0.25, chunk_size: int = 16) -> Rule:
    """Atlas (arXiv 2505.23735 eqs. 32, 33): :func:`omega_net` with momentum and Newton-Schulz, where a chunk opens.

    A step of 0.1 at every token (chunk size 1) is chaotic: rounding grows a millionfold within 33 tokens.
    """
    return Rule(
        architecture=Residual(Polynomial(MLP(2, expansion), degree)),
        bias=Omega(L2(), window),
        retention=WeightDecay(),
        algorithm=NewtonSchulz(step=0.05),
        chunk_size=chunk_size,
        read="chunk",
        lr_max=0.1,
    )


def tnt(local_chunks: tuple[int, ...] = (8,), chunk_size: int = 64, shard: int = 256) -> Rule:
    """TNT (arXiv 2511.07343) over Titans' memory: a global memory with large chunks beside local ones.

    The paper: global chunks of 2,048, local ones of 4 to 64, shards of 2,048 or 4,096 tokens.
    """
    return Rule(
        architecture=Residual(MLP(2, 4.0)),
        bias=L2(half=False),
        retention=WeightDecay(),
        algorithm=Hierarchy(local_chunks, shard),
        chunk_size=chunk_size,
        read="chunk",
        lr_max=0.1,
        clip=1.0,
    )


def softmax_attention() -> Rule:
    """Softmax attention as the growing memory of the family: nothing is compressed, nothing forgotten."""
    return Rule(Matrix(), L2(), NoRetention(), Attention(), chunk_size=1, clip=None, normalise_qk=False)


def hope(
    chunk_size: int = 16,
    expansion: float = 0.0,
    momentum: bool = False,
    negative: bool = True,
    bias: L2 | DotProduct | None = None,
) -> Rule:
    """The rule of Hope's self-modifying memories (Nested Learning eqs. 88, 89).

    Each of them makes its own targets, see :class:`~fastweights.layers.self_modifying.SelfModifyingTitans`.

    Args:
        chunk_size: of the memory proper.
        expansion: 0 for the linear memory ``x + W x`` (eq. 92 has no skip, see note (38) of ``docs/equations.md``),
            else the width of the printed two-layer network.
        momentum: the paper prints none and lists it in its ablation.
        negative: eigenvalues in [-1, 1], which state tracking needs; see ``DeltaGradientDescent``.
        bias: dot product (eq. 93), or squared error by default (eq. 92): in chunks with half the weight, so that no
            step overshoots, however long they are; see note (37) of ``docs/equations.md``.
    """
    return Rule(
        architecture=Skip(MLP(2, expansion) if expansion else Matrix()),
        bias=bias or L2(weight=1.0 if chunk_size == 1 else 0.5),
        retention=WeightDecay(),
        algorithm=DeltaGradientDescent("head" if momentum else None, negative),
        chunk_size=chunk_size,
        clip=None if expansion == 0 else 1.0,
    )


PRESETS: dict[str, Callable[[], Rule]] = {
    preset.__name__: preset
    for preset in (
        titans,
        titans_linear,
        titans_swiglu,
        moneta,
        yaad,
        memora,
        linear_attention,
        retnet,
        gla,
        mamba2,
        hgrn2,
        deltanet,
        gated_deltanet,
        longhorn,
        rwkv7,
        deltaproduct,
        ttt_linear,
        ttt_mlp,
        lact,
        mesa,
        dla,
        omega_net,
        atlas,
        tnt,
        softmax_attention,
    )
}
