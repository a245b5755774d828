"""A rule in words: its update as equations and as pseudo-code, its gates, where it is from, how it runs and why.

Everything is put together from what the four choices say of themselves, so a rule of your own is explained too.
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch

from fastweights.core.algorithm import Hierarchy, NewtonSchulz
from fastweights.core.engine import init_state
from fastweights.core.explanation_choices import (
    PAPERS,
    Said,
    of_algorithm,
    of_architecture,
    of_bias,
    of_retention,
)
from fastweights.core.explanation_update import Section, equations, pseudo_code, sections
from fastweights.core.presets import PRESETS
from fastweights.core.rule import Rule
from fastweights.core.types import Gates
from fastweights.errors import UserError

HEAD = 64
"""Size of the head whose state and gates are counted."""


class Citation(NamedTuple):
    """What is cited (``rule`` or one of the choices), from which paper, and where in it."""

    what: str
    paper: str
    title: str
    arxiv: str
    where: str


class Choice(NamedTuple):
    """One of the four choices: which it is, how it is written in Python, and what it buys."""

    choice: str
    written: str
    buys: str


class GateUse(NamedTuple):
    """One gate: its scope, how many numbers it is for a head of 64 and token, its range, and what it does."""

    name: str
    scope: str
    numbers: int
    smallest: float
    largest: float
    fixed: bool
    does: str


@dataclass(frozen=True)
class Explanation:
    """What a rule is. ``name`` is that of a preset, or empty; ``state_bytes`` those of a head of 64 in float32.

    ``remarks`` say what is particular to a preset, and where it differs from its paper. ``token_bytes`` are the bytes
    by which the state grows with every token, 0 for all rules but attention.
    """

    name: str
    summary: str
    remarks: tuple[str, ...]
    papers: tuple[Citation, ...]
    choices: tuple[Choice, ...]
    equations: tuple[str, ...]
    pseudo_code: tuple[str, ...]
    gates: tuple[GateUse, ...]
    tier: str
    why: str
    state_bytes: int
    token_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = {name: [row._asdict() for row in found[name]] for name in ("papers", "choices", "gates")}
        return found | rows | {name: list(found[name]) for name in ("remarks", "equations", "pseudo_code")}

    def text(self) -> str:
        """Plain text for a person."""
        parts = [
            [f"{self.name}: {self.summary}" if self.name else self.summary],
            *([*_wrapped(remark)] for remark in self.remarks),
            ["what each of the four choices buys", *_choice_rows(self.choices)],
            ["equations", *_indented(self.equations)],
            ["pseudo-code", *_indented(self.pseudo_code)],
            ["gates", *(_table(_gate_rows(self.gates)) or ["  none"])],
            ["runs on", *_wrapped(f"{self.tier}: {self.why}")],
            [f"state of a head of {HEAD}", f"  {self._size()}"],
            ["papers: the rule's own, and those that its choices are taken from", *_citation_rows(self.papers)],
        ]
        return "\n\n".join("\n".join(part) for part in parts)

    def _size(self) -> str:
        if self.token_bytes:
            return f"grows by {self.token_bytes:,} bytes with every token"
        return f"{self.state_bytes:,} bytes, {self.state_bytes // 4:,} numbers"


def explain_rule(rule: Rule) -> Explanation:
    """Explains a rule; one that equals a preset goes by its name.

    Example:
        >>> from fastweights.core import presets
        >>> explain_rule(presets.deltanet()).equations[-3]
        '  u_t = (A_{t−1} k_t − v_t) k_tᵀ'
    """
    name, (summary, *remarks) = _published(rule)
    cited = _cited(summary) if name else None
    said = _said(rule)
    parts = [_citation(what, one) for what, one in said.items() if one.paper]
    steps: list[Section] = sections(rule)
    whole, by_token = state_bytes(rule)
    return Explanation(
        name=name,
        summary=summary,
        remarks=tuple(remarks),
        papers=tuple(([_citation("rule", cited)] if cited else []) + parts),
        choices=tuple(Choice(what, written(getattr(rule, what)), one.buys) for what, one in said.items()),
        equations=tuple(equations(rule, steps)),
        pseudo_code=tuple(pseudo_code(rule, steps)),
        gates=tuple(_gates(rule)),
        tier=rule.tier,
        why=_why(rule),
        state_bytes=whole,
        token_bytes=by_token,
    )


def explain_preset(name: str) -> Explanation:
    """Explains the preset of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"there is no rule named {name!r}; {hint}")
    return explain_rule(PRESETS[name]())


def written(choice: Any) -> str:
    """A choice as one would write it: fields that have their default value are left out."""
    if not is_dataclass(choice):
        return f"{choice:g}" if isinstance(choice, float) else repr(choice)
    given = []
    for field in fields(choice):
        value = getattr(choice, field.name)
        if is_dataclass(value):
            given.append(written(value))
        elif value != field.default and field.init:
            given.append(f"{field.name}={written(value)}")
    return f"{type(choice).__name__}({', '.join(given)})"


def state_bytes(rule: Rule, size: int = HEAD) -> tuple[int, int]:
    """Bytes in float32 of the state of one head with keys and values of one size; and those that a token adds."""
    initial = tuple(torch.zeros(1, m.outputs, m.inputs) for m in (*rule.maps(size, size), *rule.constants(size, size)))
    state = init_state(rule, initial, 1, (size, size))
    kept = sum(w.nbytes for w in (*state.dual, *state.momentum, *state.anchor, *state.extra))
    return kept, sum(4 * w.shape[-1] for w in state.extra) if rule.grows else 0


def _said(rule: Rule) -> dict[str, Said]:
    """What the four choices say; where one of them makes another mean something else, what it then means."""
    said = {
        "architecture": of_architecture(rule.architecture),
        "bias": of_bias(rule.bias),
        "retention": of_retention(rule.retention),
        "algorithm": of_algorithm(rule.algorithm),
    }
    if rule.grows:
        said["architecture"] = Said("no network: the pairs themselves are the memory", "MIRAS", "table 1")
        said["bias"] = Said(
            "the average of all values, the minimum of errors weighed by likeness to the query", "MIRAS"
        )
        said["retention"] = Said("keeps everything")
    elif rule.tiers[0] == "least squares":
        said["bias"] = Said("the squared error of all tokens together, older ones discounted", "MesaNet")
    elif rule.erase_key:
        said["bias"] = Said("squared error of what is erased; what is written is added as it is", "RWKV-7")
    if "retain" in rule.fixed:
        said["retention"] = Said("forgets at a pace that is learned once, the same for all tokens", "RetNet")
    return said


def _published(rule: Rule) -> tuple[str, list[str]]:
    """Name and paragraphs, but for the arguments, of the preset that equals the rule."""
    for name, preset in PRESETS.items():
        if preset() == rule:
            said = re.sub(r":\w+:`(\w+)`", r"\1", inspect.getdoc(preset) or "").replace("``", "")
            parts = [" ".join(part.split()) for part in said.split("\n\n")]
            return name, [part for part in parts if not part.startswith("Args:")]
    return "", ["a rule of your own"]


def _cited(line: str) -> Said | None:
    """The paper that a preset's first line names in parentheses."""
    for text in re.findall(r"\(([^()]*)\)", line):
        for paper, (_, arxiv) in PAPERS.items():
            if arxiv in text or re.match(rf"{paper}\b", text):
                return Said("", paper, re.sub(rf"arXiv {arxiv}|^{paper}\b", "", text).strip(" ,"))
    return None


def _citation(what: str, said: Said) -> Citation:
    title, arxiv = PAPERS[said.paper]
    return Citation(what, said.paper, title, arxiv, said.where)


def _gates(rule: Rule) -> Iterator[GateUse]:
    described = zip(Gates._fields, rule.scopes, rule.gate_widths(HEAD, HEAD), rule.ranges, strict=True)
    for name, scope, numbers, largest in described:
        if scope is not None:
            yield GateUse(name, scope, numbers, 0.0, largest, name in rule.fixed, _use(rule, name))


def _use(rule: Rule, name: str) -> str:
    """What a gate does."""
    if name == "lr" and rule.erase_key:
        return "how much of what is held under the erase key is taken out"
    if name == "lr" and rule.tiers[0] == "least squares":
        return "how much the token counts in both sums; 0 leaves no trace"
    if name == "lr" and isinstance(rule.algorithm, NewtonSchulz):
        return "how much the token counts in the momentum, not how long the step is"
    if name == "retain" and rule.tied:
        return "what is kept, 1 all and 0 nothing; one minus it is the key"
    return {
        "lr": "size of the step; 0 writes nothing",
        "momentum": "how much of the past surprise goes on; 0 forgets it",
        "retain": "what is kept of the memory, 1 all and 0 nothing",
        "threshold": "where an error begins to count as an outlier",
        "importance": "how much the token counts whenever the window writes it",
    }[name]


def _why(rule: Rule) -> str:
    """Why the rule runs on the tier it runs on."""
    tier = rule.tiers[0]
    affine = rule.bias.affine()
    linear = isinstance(rule.algorithm, Hierarchy) or (rule.retention.link_at is None and not rule.settles)
    channels = [name for name, scope in zip(Gates._fields, rule.scopes, strict=True) if scope in ("key", "value")]
    if tier == "attention":
        why = "every pair is kept, so all queries of a call are answered at once"
    elif tier == "least squares":
        why = "two sums collect, and all queries of a block are solved together by conjugate gradients"
    elif tier == "delta" and affine is not None and affine.slope == 0 and not rule.erase_key:
        why = "a matrix's gradient does not depend on the memory: a block of tokens is a few masked products"
    elif tier == "delta":
        why = "a matrix's gradient at the present weights is affine in them: a block of tokens is one triangular solve"
    elif tier == "materialised":
        reason = (
            "the link acts at every token" if rule.retention.link_at == "token" else f"{_listed(channels)} per channel"
        )
        why = f"{reason}, so the weights of every token of a chunk are formed"
    elif tier == "dual":
        why = "gates are numbers per head or map, so every token's weights are applied without being formed"
        why += "" if linear else "; what is not linear acts only where a chunk opens"
    else:
        why = "every gradient waits for the one before, and no closed form is known: token by token"
    if tier == "delta" and channels:
        why += f", with {_listed(channels)} per channel"
    return why if rule.architecture.closed_form else f"{why}; inner gradients by autograd, as no backward is written"


def _listed(names: list[str]) -> str:
    return " and ".join(names)


def _indented(lines: tuple[str, ...]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")


def _table(rows: list[list[str]]) -> list[str]:
    """Rows whose columns but the last are as wide as their widest entry."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  " + "  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _labelled(label: str, text: str) -> list[str]:
    """A label and a text beside it."""
    return textwrap.wrap(f"{label:<12}  {text}", 110, initial_indent="  ", subsequent_indent=" " * 16)


def _choice_rows(choices: tuple[Choice, ...]) -> list[str]:
    return [line for c in choices for line in (f"  {c.choice:<12}  {c.written}", *_labelled("", c.buys))]


def _gate_rows(gates: tuple[GateUse, ...]) -> list[list[str]]:
    found = []
    for gate in gates:
        scope = f"per {gate.scope}" + (", the same for all tokens" if gate.fixed else "")
        numbers = "1 number" if gate.numbers == 1 else f"{gate.numbers} numbers"
        found.append([gate.name, scope, numbers, f"{gate.smallest:g} to {gate.largest:.3g}", gate.does])
    return found


def _citation_rows(papers: tuple[Citation, ...]) -> list[str]:
    """The rule's paper with its title, those of the choices by their short names."""
    lines = []
    for paper in papers:
        name = f"{paper.title} (arXiv {paper.arxiv})" if paper.what == "rule" else paper.paper
        lines += _labelled(paper.what, name + (f", {paper.where}" if paper.where else ""))
    return lines or ["  none"]
