"""A rule's update as lines of formulas, and these lines as equations or as pseudo-code.

A line is ``left = right`` with times written out, ``A_t = retain_t · A_{t−1} + S_t``; pseudo-code is the same without
the times, ``A ← retain · A + S``. Which lines there are follows from what the choices declare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fastweights.core.algorithm import (
    Algorithm,
    Attention,
    ConjugateGradient,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import Architecture, Matrix, Residual, Skip
from fastweights.core.explanation_choices import beginning_of, link_of, loss_of, network, own, projection_of
from fastweights.core.features import Polynomial
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, Scope


class Line(NamedTuple):
    """``left = right``; ``note`` says when, or what a letter is."""

    left: str
    right: str
    note: str = ""


class Section(NamedTuple):
    """Lines that belong together: ``title`` says when they hold, ``depth`` how far pseudo-code is indented."""

    title: str
    lines: list[Line]
    depth: int = 1


def sections(rule: Rule) -> list[Section]:
    """What happens with every token, in order."""
    algorithm = rule.algorithm
    if isinstance(algorithm, Attention):
        return [Section("", [Line("y_t", "Σ_{i ≤ t} v_i · softmax_i(scale ⟨q_t, k_i⟩ / √K)")])]
    if isinstance(algorithm, ConjugateGradient):
        return [Section("", _least_squares(rule, algorithm))]
    if isinstance(algorithm, Hierarchy):
        return list(_hierarchy(rule, algorithm))
    return list(_stepping(rule))


def equations(rule: Rule, found: list[Section]) -> Iterator[str]:
    """The definitions, and the sections with their lines aligned."""
    yield from _aligned(list(_definitions(rule)))
    for section in found:
        yield f"{section.title or 'at every token'}:"
        yield from (f"  {line}" for line in _aligned(section.lines))


def pseudo_code(rule: Rule, found: list[Section]) -> Iterator[str]:
    """The same as a loop over tokens."""
    names = [name for name, scope in zip(Gates._fields, rule.scopes, strict=True) if scope is not None]
    if not rule.grows:
        zero = "   S ← 0" if rule.has_momentum else ""
        yield f"A ← {beginning_of(rule.retention)}{zero}"
    yield f"for every token ({', '.join(['q', 'k', 'v', *names])}):"
    for section in found:
        if section.depth > 1:
            yield "    " * (section.depth - 1) + f"{section.title}:".replace("where", "if", 1)
        for line in section.lines:
            note = f"   # {line.note}" if line.note else ""
            yield "    " * section.depth + _timeless(f"{line.left} ← {line.right}") + note


def _aligned(lines: list[Line]) -> Iterator[str]:
    width = max((len(line.left) for line in lines), default=0)
    for line in lines:
        yield f"{line.left:<{width}} = {line.right}" + (f"   ({line.note})" if line.note else "")


def _timeless(text: str) -> str:
    return re.sub(r"_\{t−1\}|_t(?![A-Za-z])", "", text)


def _definitions(rule: Rule) -> Iterator[Line]:
    if rule.normalise_qk:
        yield Line("q, k", "q / ‖q‖, k / ‖k‖", "by the layer")
    if rule.tied:
        yield Line("k", "1 − retain", "by the layer")
    if rule.grows:
        return
    yield Line("f(W, x)", network(rule.architecture))
    degree = _degree(rule.architecture)
    if degree:
        yield Line(
            "φ(x)", f"the monomials of x up to degree {degree}, so that ⟨φ(q), φ(k)⟩ = Σ a_i² ⟨q, k⟩^i, a learned"
        )
    if rule.erase_key:
        return
    loss = loss_of(rule.bias)
    yield Line("ℓ(W; k, v)", loss.loss + (",  e = f(W, k) − v" if loss.uses_error else ""))
    yield Line("∂ℓ/∂f", loss.slope)
    if rule.clip is not None:
        yield Line("clip(u)", f"u · min(1, {rule.clip:g} / ‖u‖), over all maps together")
    if rule.retention.link_at is not None:
        yield Line("link(A)", link_of(rule.retention))


def _degree(architecture: Architecture) -> int:
    """Of the polynomial features inside an architecture, 0 where there are none."""
    if isinstance(architecture, Polynomial):
        return architecture.degree
    return _degree(architecture.inner) if isinstance(architecture, Residual | Skip) else 0


def _stepping(rule: Rule) -> Iterator[Section]:
    """Rules that step from token to token."""
    opening = list(_opening(rule))
    if opening:
        online = Section("before every token", opening)
        yield online if rule.online else Section(f"where a chunk of {rule.chunk_size} opens", opening, 2)
    if isinstance(rule.algorithm, Steps):
        one = replace(rule, algorithm=GradientDescent())
        title = f"for each of its {rule.algorithm.count} keys, values and lr (retain acts before the first alone)"
        yield Section(title, _write(one), 2)
        yield Section("", [_read(rule)])
        return
    lines = _write(rule)
    yield Section("", [_read(rule), *lines] if rule.read == "before" else [*lines, _read(rule)])


def _anchored(rule: Rule) -> bool:
    """Whether gradients are taken at weights that are kept, W_c, and not at the present ones."""
    return not rule.online or rule.retention.link_at is not None or rule.retention.projects


def _opening(rule: Rule) -> Iterator[Line]:
    algorithm, retention = rule.algorithm, rule.retention
    if algorithm.coupling == "deferred":
        yield _settled(algorithm)
    if retention.projects:
        yield Line("A", projection_of(retention))
    if retention.every is not None:
        yield Line(
            "A, S" if rule.has_momentum else "A", "W₀, 0" if rule.has_momentum else "W₀", _every(retention.every)
        )
    if _anchored(rule):
        yield Line("W_c", "A" if retention.link_at is None else "link(A)")


def _settled(algorithm: Algorithm) -> Line:
    if isinstance(algorithm, NewtonSchulz) and not own(algorithm):
        note = f"NS: {algorithm.iterations} Newton-Schulz iterations, singular values near 1"
        return Line("A", f"A + {algorithm.step:g} · NS(S)", note)
    return Line("A", f"{type(algorithm).__name__}.settle(A, S)")


def _every(tokens: int) -> str:
    return f"every {tokens:,} tokens only"


def _gated(name: str, scope: Scope | None, what: str) -> str:
    """A gate times a matrix: one number, or one per column (``key``) or row (``value``)."""
    if scope is None:
        return what
    if scope == "key":
        return f"{what} diag({name}_t)"
    return f"diag({name}_t) {what}" if scope == "value" else f"{name}_t · {what}"


def _write(rule: Rule) -> list[Line]:
    """How the memory goes from A_{t−1} to A_t."""
    lr, momentum, retain = rule.scopes[:3]
    kept = _gated("retain", retain, "A_{t−1}")
    if rule.erase_key:
        return _erase(rule, kept)
    lines, present = [], "A_{t−1}"
    if retain is not None and (rule.decay_before_grad or isinstance(rule.algorithm, ImplicitStep)):
        lines, present, kept = [Line("Ā_t", kept)], "Ā_t", "Ā_t"
    inputs = "x: what each map is given" if rule.algorithm.erases else ""
    lines.append(Line("u_t", _gradient(rule, "W_c" if _anchored(rule) else present), inputs))
    step = _gated("lr", lr, "u_t")
    if isinstance(rule.algorithm, ImplicitStep):
        affine = rule.bias.affine()
        slope = "" if affine is None or affine.slope == 1 else f"{affine.slope:g} "
        step = f"{_gated('lr', lr, f'(1 + {slope}lr_t ‖k_t‖²)⁻¹ u_t')}"
    past = _gated("momentum", momentum, "S_{t−1}")
    match rule.algorithm.coupling:
        case "none":
            lines.append(Line("A_t", f"{kept} − {step}"))
        case "heavy ball":
            lines += [Line("S_t", f"{past} − {step}"), Line("A_t", f"{kept} + S_t")]
        case "nesterov":
            ahead = _gated("momentum", momentum, "S_t")
            lines += [Line("S_t", f"{past} − {step}"), Line("A_t", f"{kept} + {ahead} − {step}")]
        case "deferred":
            lines += [Line("S_t", f"{past} − {step}"), *([] if retain is None else [Line("A_t", kept)])]
    if rule.retention.lag:
        lines.append(Line("W_c", "link(A_t)", "after the chunk's first token only: the lag token"))
    return lines


def _gradient(rule: Rule, at: str) -> str:
    """The inner gradient of a token at some weights, with whatever the algorithm adds to it."""
    affine = rule.bias.affine()
    window = rule.bias.importance_scope is not None
    i = "i" if window else "t"
    if isinstance(rule.architecture, Matrix) and not rule.architecture.bias and affine is not None:
        error = (
            f"({at} k_{i} − v_{i})"
            if affine.slope == affine.gain
            else f"({affine.slope:g} {at} k_{i} − {affine.gain:g} v_{i})"
        )
        slope = "" if affine.slope in (0, 1) else f"{affine.slope:g} "
        found = f"−v_{i} k_{i}ᵀ" if affine == (0, 1) else f"{slope}{error} k_{i}ᵀ"
    else:
        found = f"∂ℓ({at}; k_{i}, v_{i})/∂W"
    if rule.clip is not None:
        found = f"clip({found})"
    if window:
        found = f"Σ_{{t−{rule.bias.window} < i ≤ t}} importance_i · {found}"
    if rule.algorithm.erases:
        found += " + A_{t−1} x_t x_tᵀ / max(1, ‖x_t‖²)"
    return found


def _erase(rule: Rule, kept: str) -> list[Line]:
    affine = rule.bias.affine()
    slope = "" if affine is None or affine.slope == 1 else f"{affine.slope:g} "
    erased = _gated("lr", rule.scopes[0], "u_t")
    return [
        Line("u_t", f"{slope}A_{{t−1}} r_t r_tᵀ", "r: the erase key, beside k"),
        Line("A_t", f"{kept} − {erased} + v_t k_tᵀ"),
    ]


def _read(rule: Rule) -> Line:
    weights = {"after": "A_t", "before": "A_{t−1}", "chunk": "W_c" if _anchored(rule) else "A_{t−1}"}[rule.read]
    if rule.retention.link_at == "token" and rule.read != "chunk":
        weights = f"link({weights})"
    plain = isinstance(rule.architecture, Matrix) and not rule.architecture.bias and not own(rule.architecture)
    return Line("y_t", f"{weights} q_t" if plain else f"f({weights}, q_t)")


def _least_squares(rule: Rule, algorithm: ConjugateGradient) -> list[Line]:
    retain = rule.scopes[2]
    return [
        Line("H_t", f"{_gated('retain', retain, 'H_{t−1}')} + lr_t · k_t k_tᵀ"),
        Line("A_t", f"{_gated('retain', retain, 'A_{t−1}')} + lr_t · v_t k_tᵀ"),
        Line("y_t", "A_t (H_t + ridge)⁻¹ q_t", f"{algorithm.iterations} conjugate gradient iterations at most"),
    ]


def _hierarchy(rule: Rule, algorithm: Hierarchy) -> Iterator[Section]:
    """The global memory is a rule of its own; every local one does the same with smaller chunks."""
    whole = replace(rule, algorithm=algorithm.step)
    for section in _stepping(whole):
        yield section._replace(lines=[line for line in section.lines if line.left != "y_t"])
    sizes = ", ".join(str(size) for size in algorithm.local_chunks)
    again = Line("A, S" if rule.has_momentum else "A", "W₀, 0" if rule.has_momentum else "W₀", _every(algorithm.shard))
    local = [
        again,
        Line("A_t", "the same step, with W_c of its own chunks"),
        Line("P_t", "P_{t−1} + k_t k_tᵀ / ‖k_t‖²", "from 0 in every chunk of its own"),
        Line("z_t", "f(A_t, P_t q_t)"),
    ]
    yield Section(f"for every local memory, with chunks of {sizes}", local, 2)
    yield Section("", [Line("y_t", "f(W_c, q_t) + Σ z_t over the local memories")])
