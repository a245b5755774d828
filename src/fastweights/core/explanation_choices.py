"""What is said of each choice: its formula, what it buys, and which paper it is from.

In formulas W are the weights in force, A what is accumulated (the dual), W₀ the learned initial weights and W_c the
weights in force where the present chunk opened. A choice of the user's own is named by its class and described by the
first line of its docstring.
"""

from __future__ import annotations

from typing import NamedTuple

from fastweights.core.algorithm import (
    Algorithm,
    Attention,
    ConjugateGradient,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    Momentum,
    Nesterov,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import MLP, Architecture, GatedMLP, Matrix, Residual, Skip, Vector
from fastweights.core.bias import KL, L2, LP, Bias, DotProduct, Huber, Omega, RobustL2
from fastweights.core.features import Polynomial
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    KLDivergence,
    LQNorm,
    NoRetention,
    Reset,
    Retention,
    RowNorm,
    SoftThreshold,
    WeightDecay,
)

PAPERS: dict[str, tuple[str, str]] = {
    "Titans": ("Titans: Learning to Memorize at Test Time", "2501.00663"),
    "MIRAS": (
        "It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
        "Optimization",
        "2504.13173",
    ),
    "Atlas": ("ATLAS: Learning to Optimally Memorize the Context at Test Time", "2505.23735"),
    "TNT": ("TNT: Improving Chunkwise Training for Test-Time Memorization", "2511.07343"),
    "Nested Learning": ("Nested Learning: The Illusion of Deep Learning Architectures", "2512.24695"),
    "LaCT": ("Test-Time Training Done Right", "2505.23884"),
    "TTT": ("Learning to (Learn at Test Time): RNNs with Expressive Hidden States", "2407.04620"),
    "MesaNet": ("MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", "2506.05233"),
    "Lattice": ("Lattice: Learning to Efficiently Compress the Memory", "2504.05646"),
    "Linear attention": (
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        "2006.16236",
    ),
    "RetNet": ("Retentive Network: A Successor to Transformer for Large Language Models", "2307.08621"),
    "GLA": ("Gated Linear Attention Transformers with Hardware-Efficient Training", "2312.06635"),
    "Mamba-2": (
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
        "2405.21060",
    ),
    "HGRN2": ("HGRN2: Gated Linear RNNs with State Expansion", "2404.07904"),
    "DeltaNet": ("Parallelizing Linear Transformers with the Delta Rule over Sequence Length", "2406.06484"),
    "Gated DeltaNet": ("Gated Delta Networks: Improving Mamba2 with Delta Rule", "2412.06464"),
    "Longhorn": ("Longhorn: State Space Models are Amortized Online Learners", "2407.14207"),
    "RWKV-7": ('RWKV-7 "Goose" with Expressive Dynamic State Evolution', "2503.14456"),
    "DeltaProduct": ("DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products", "2502.10297"),
    "Attention": ("Attention Is All You Need", "1706.03762"),
}
"""Title and arXiv number of each paper, by the name it goes by here."""


class Said(NamedTuple):
    """What a choice buys, in one line; the paper it is from, a key of :data:`PAPERS` or empty; and where in it."""

    buys: str
    paper: str = ""
    where: str = ""


def own(choice: object) -> bool:
    """Whether a choice is the user's and not the library's."""
    return not type(choice).__module__.startswith("fastweights.core.")


def described(choice: object) -> Said:
    """A choice of the user's own, by the first line of its docstring."""
    name, text = type(choice).__name__, (type(choice).__doc__ or "").strip()
    # A dataclass without a docstring is given its signature for one.
    bare = not text or text.startswith(f"{name}(")
    return Said("a choice of your own, without a docstring" if bare else text.splitlines()[0].replace("``", ""))


def network(architecture: Architecture, x: str = "x") -> str:
    """``f(W, x)`` as a formula."""
    if own(architecture):
        return f"{type(architecture).__name__}(W, {x})"
    match architecture:
        case Vector():
            return f"w ⊙ {x}"
        case Matrix(bias=bias):
            return f"W {_with_one(x, bias)}"
        case MLP(depth=depth, activation=activation, bias=bias):
            for i in range(1, depth):
                x = f"{activation}(W{_small(i)} {_with_one(x, bias)})"
            return f"W{_small(depth)} {_with_one(x, bias)}"
        case GatedMLP(activation=activation):
            return f"W_down ({activation}(W_gate {x}) ⊙ W_up {x})"
        case Residual(inner=inner, affine=affine):
            return f"{x} + gain ⊙ LN({network(inner, x)}) + shift" if affine else f"{x} + LN({network(inner, x)})"
        case Skip(inner=inner):
            return f"{x} + {network(inner, x)}"
        case Polynomial(inner=inner):
            return network(inner, f"φ({x})")
    raise AssertionError(f"{architecture} has no formula")


def _with_one(x: str, bias: bool) -> str:
    return f"[{x}; 1]" if bias else x


def _small(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def of_architecture(architecture: Architecture) -> Said:
    """What it buys."""
    if own(architecture):
        return described(architecture)
    match architecture:
        case Vector():
            return Said(
                "one number per channel: the smallest state, but no channel learns from another", "MIRAS", "table 1"
            )
        case Matrix():
            return Said(
                "one matrix: the cheapest to write and to read; tells about as many keys apart as they have channels",
                "MIRAS",
                "table 1",
            )
        case MLP(depth=depth):
            layers = f"{depth} layers" if depth > 1 else "one layer"
            return Said(
                f"{layers} that all learn: relations a matrix cannot hold", "Titans", "camera-ready section 3.3"
            )
        case GatedMLP():
            return Said("hidden units that the key switches on and off; three maps that all learn", "LaCT")
        case Residual(inner=inner):
            said = of_architecture(inner)
            return Said(
                f"{said.buys}; answers stay one LayerNorm away from the key", "Titans", "camera-ready section 3.3"
            )
        case Skip(inner=inner):
            said = of_architecture(inner)
            return Said(f"{said.buys}; answers start from the key itself", "Nested Learning", "eq. 89")
        case Polynomial(inner=inner, degree=degree):
            said = of_architecture(inner)
            return Said(
                f"{said.buys}; products of up to {degree} channels as features, for more keys", "Atlas", "section 3.1"
            )
    raise AssertionError(f"{architecture} is not described")


class Loss(NamedTuple):
    """The loss of one token and its gradient at the answer, with ``e = f(W, k) − v`` where ``uses_error``."""

    loss: str
    slope: str
    uses_error: bool = True


def loss_of(bias: Bias) -> Loss:
    """The inner loss as a formula; of a window that of one token."""
    if own(bias):
        name = type(bias).__name__
        return Loss(f"{name}.loss(f(W, k), v)", f"{name}.gradient(f(W, k), v)", False)
    match bias:
        case L2():
            factor = bias.affine().slope
            times = {1.0: "½ ", 2.0: ""}.get(factor, f"{factor / 2:g} ")
            return Loss(f"{times}‖e‖²", "e" if factor == 1 else f"{factor:g} e")
        case DotProduct():
            return Loss("−⟨f(W, k), v⟩", "−v", False)
        case LP(p=p, eps=eps):
            times = "" if p == 1 else f"{p:g} "
            slope = "2 e" if p == 2 else f"{times}e ⊙ (e² + ε)^{p / 2 - 1:g}"
            return Loss(f"Σ ((e² + ε)^{p / 2:g} − ε^{p / 2:g}),  ε = {eps:g}", slope)
        case Huber(reach="coordinate"):
            d = "d = threshold"
            return Loss(f"Σ ½ e² where |e| ≤ d, else d (|e| − ½ d),  {d}", "e where |e| ≤ d, else d sign(e)")
        case Huber(reach="norm"):
            return Loss("½ ‖e‖² where ‖e‖ ≤ d, else d (‖e‖ − ½ d),  d = threshold", "e min(1, d / ‖e‖)")
        case Huber():
            return Loss("½ ‖e‖² where ‖e‖ ≤ d, else d Σ |e|,  d = threshold", "e where ‖e‖ ≤ d, else d sign(e)")
        case RobustL2(shift=shift):
            return Loss(f"½ (‖e‖ + {shift:g})²", f"e + {shift:g} e / ‖e‖")
        case KL():
            return Loss("KL(softmax(v) ‖ softmax(f(W, k)))", "softmax(f(W, k)) − softmax(v)", False)
        case Omega(inner=inner):
            return loss_of(inner)
    raise AssertionError(f"{bias} has no formula")


def of_bias(bias: Bias) -> Said:
    """What it buys."""
    if own(bias):
        return described(bias)
    match bias:
        case L2(half=True):
            return Said("corrects errors: what is known already writes nothing", "Titans", "appendix C")
        case L2():
            return Said("corrects errors, with a step twice as long: what is known writes nothing", "Titans", "eq. 12")
        case DotProduct():
            return Said("adds every pair, known or not: no reading before the write", "MIRAS", "table 1")
        case LP(p=p):
            more = "more" if p > 2 else "less" if p < 2 else "just as much"
            return Said(f"large errors weigh {more} than in a squared error", "MIRAS", "eqs. 10, 11")
        case Huber(reach=reach):
            number = {"coordinate": "14", "norm": "15", "mixture": "16"}[reach]
            return Said("outliers write a bounded amount; every token says where that begins", "MIRAS", f"eq. {number}")
        case RobustL2(shift=shift):
            return Said(f"is prepared for values that are off by up to {shift:g}", "MIRAS", "section 5.1")
        case KL():
            return Said("values are distributions: what is learned is their difference")
        case Omega(inner=inner, window=window):
            return Said(f"{of_bias(inner).buys}; every step writes the last {window} tokens", "Atlas", "eqs. 8, 9")
    raise AssertionError(f"{bias} is not described")


def link_of(retention: Retention) -> str:
    """The weights in force of a dual A."""
    if own(retention):
        return f"{type(retention).__name__}.link(A)"
    match retention:
        case KLDivergence(total=total):
            return f"{_times(total)}softmax(A), row by row"
        case LQNorm(q=q, form="printed"):
            return f"A / (‖A‖_{q:g}^{q - 2:g} + ε)"
        case LQNorm(q=q):
            p = q / (q - 1)
            return f"sign(A) |A|^{p - 1:.3g} ‖A‖_p^{2 - p:.3g},  p = {p:.3g}"
        case SoftThreshold(shrink=shrink):
            return f"sign(A) max(0, |A| − {shrink:g})"
        case Bounded(low=low, high=high):
            return f"{low:g} + {high - low:g} sigmoid(A)"
    raise AssertionError(f"{retention} has no link")


def projection_of(retention: Retention) -> str:
    """What the memory becomes where a chunk opens."""
    if own(retention):
        return f"{type(retention).__name__}.project(A, W_c, W₀)"
    match retention:
        case KLDivergence():
            return "A − log Σ exp(A), row by row"
        case ElasticNet(shrink=shrink):
            return f"sign(A) max(0, |A| − {shrink:g})"
        case FDivergence(f="kl", total=total):
            return f"W_c ⊙ exp(A − W_c − ζ), ζ such that every row sums to {total:g}"
        case FDivergence(total=total):
            return f"W_c ⊙ max(0, 1 + A − W_c − ζ), ζ such that every row sums to {total:g}"
        case RowNorm(unit=True):
            return "A, every row with length 1"
        case RowNorm():
            return "A, every row with the length it has in W₀"
    raise AssertionError(f"{retention} has no projection")


def beginning_of(retention: Retention) -> str:
    """The dual of a document that begins."""
    if own(retention):
        kept = type(retention).begin is Retention.begin
        return "W₀" if kept else f"{type(retention).__name__}.begin(W₀)"
    match retention:
        case LQNorm(form="mirror"):
            return "the A whose link is W₀"
        case FDivergence(total=total):
            return f"{_times(total)}softmax(W₀), row by row"
        case RowNorm(unit=True):
            return "W₀, every row with length 1"
    return "W₀"


def _times(total: float) -> str:
    return "" if total == 1 else f"{total:g} "


def of_retention(retention: Retention) -> Said:
    """What it buys."""
    if own(retention):
        return described(retention)
    match retention:
        case NoRetention():
            return Said("keeps everything: nothing fades, a pair is only written over")
        case WeightDecay(scope=scope):
            each = {"head": "", "map": " and map", "key": " and key channel", "value": " and value channel"}[scope]
            return Said(f"forgets as much as the token says, a number per head{each}", "Titans", "eq. 13")
        case KLDivergence():
            return Said("weights are shares: what one gains, the others of its row lose", "MIRAS", "eqs. 21, 27, 30")
        case LQNorm():
            return Said("spreads weights more evenly: the larger one is, the less it grows", "MIRAS", "eqs. 17, 24")
        case ElasticNet():
            return Said("weights that stay small become exactly 0, and are forgotten", "MIRAS", "eq. 22")
        case SoftThreshold():
            return Said("weights that stay small are hidden, and go on collecting", "MIRAS", "eq. 23")
        case FDivergence():
            return Said("weights are shares, held near those of the chunk before", "MIRAS", "section 5.2")
        case Bounded(low=low, high=high):
            return Said(f"no weight leaves the interval from {low:g} to {high:g}", "MIRAS", "section 5.2")
        case RowNorm(unit=unit):
            return Said("rows keep their length: what is new pushes out what is old", "Lattice" if unit else "LaCT")
        case Reset(inner=inner, every=every):
            return Said(f"{of_retention(inner).buys}; starts again every {every:,} tokens", "TNT", "eq. 6")
    raise AssertionError(f"{retention} is not described")


def of_algorithm(algorithm: Algorithm) -> Said:
    """What it buys."""
    if own(algorithm):
        return described(algorithm)
    match algorithm:
        case GradientDescent():
            return Said("one step a token, and no state beside the memory", "Titans", "eq. 8")
        case Momentum():
            return Said("a surprising token goes on being written while the next are read", "Titans", "eq. 10")
        case Nesterov():
            return Said("momentum that looks one step ahead")
        case ImplicitStep():
            return Said("takes the gradient where the step arrives: stable for any lr", "Longhorn")
        case Steps(count=count):
            return Said(f"{count} writes a token, whose product can permute what is stored", "DeltaProduct")
        case DeltaGradientDescent():
            return Said("takes out what is held under the key while it writes", "Nested Learning", "eqs. 56, 57, 88")
        case NewtonSchulz(step=step):
            return Said(f"every direction of a chunk is written equally far, about {step:g}", "Atlas", "eqs. 32, 33")
        case ConjugateGradient():
            return Said("no step at all: the best matrix for all tokens so far, solved for every query", "MesaNet")
        case Hierarchy():
            return Said("a coarse memory of everything beside fine ones that start again", "TNT", "eqs. 6, 7")
        case Attention():
            return Said("keeps every pair: nothing is confused, and the state grows", "Attention")
    raise AssertionError(f"{algorithm} is not described")
