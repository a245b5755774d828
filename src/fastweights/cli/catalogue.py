"""Commands about what there is: models, memory rules, and the proof that the rules are what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastweights.cli.terminal import bytes_text, emit, note, say, table

if TYPE_CHECKING:
    from fastweights.core.rule import Rule


def models(*, json: bool = False) -> None:
    """List the shipped models.

    Args:
        json: print everything that is known of them as JSON
    """
    from fastweights.models.pretrained import list_models

    found = list_models()
    if json:
        emit([{**info._asdict(), "folder": str(info.folder), "config": info.config.to_dict()} for info in found])
        return
    if not found:
        note("no models are shipped with this version; give --model the folder of one that you trained")
        return
    rows = [(i.name, i.parameters, i.config.wiring, i.tokenizer or None, i.summary) for i in found]
    table(("model", "parameters", "wiring", "tokenizer", "what it is"), rows)


def rules(*, json: bool = False) -> None:
    """List the memory rules of known models: their four choices, how they are computed, and how large their state is.

    Args:
        json: print them as JSON
    """
    from fastweights.core.explanation import HEAD
    from fastweights.core.presets import PRESETS

    found = {name: _facts(preset()) for name, preset in PRESETS.items()}
    if json:
        emit([{"name": name, **facts, "rule": PRESETS[name]().to_dict()} for name, facts in found.items()])
        return
    shown = ("architecture", "bias", "retention", "algorithm", "tier", "gates", "chunk_size")
    table(
        ("rule", *(name.replace("_", " ") for name in shown), f"state of a head of {HEAD}"),
        [
            (name, *(facts[key] for key in shown), "grows" if facts["grows"] else bytes_text(facts["state_bytes"]))
            for name, facts in found.items()
        ],
    )


def _facts(rule: Rule) -> dict[str, Any]:
    from fastweights.core.explanation import HEAD, state_bytes, written
    from fastweights.core.types import Gates

    gates = [
        f"{name} per {scope}" + (f" to {largest:.3g}" if largest != 1.0 or name == "lr" else "")
        for name, scope, largest in zip(Gates._fields, rule.scopes, rule.ranges, strict=True)
        if scope is not None
    ]
    return {
        "architecture": written(rule.architecture),
        "bias": written(rule.bias),
        "retention": written(rule.retention),
        "algorithm": written(rule.algorithm),
        "tier": rule.tier,
        "gates": ", ".join(gates) or "none",
        "chunk_size": rule.chunk_size,
        "state_dim": HEAD,
        "state_bytes": state_bytes(rule)[0],
        "grows": rule.grows,
    }


def explain(rule: Annotated[str, arg(metavar="RULE")], /, *, json: bool = False) -> None:
    """Explain a memory rule: its update as equations and pseudo-code, its gates, its paper, how it runs and why.

    Args:
        rule: one that `fastweights rules` lists
        json: print it as JSON
    """
    from fastweights.core.explanation import explain_preset

    found = explain_preset(rule)
    if json:
        emit(found.to_dict())
    else:
        say(found.text())


def check(
    names: Annotated[tuple[str, ...], arg(metavar="NAME...")] = (),
    /,
    *,
    quick: bool = False,
    jobs: int = 1,
    json: bool = False,
) -> int:
    """Prove that rules, blocks and models have every property they should; exit status 1 if one fails.

    Each rule is compared with a token-by-token loop in float64, at every pair of chunk size (1, 4, 7, 16) and length
    (1, 3, 7, 16, 33), in reads, states and gradients; then blocks and a whole model.

    Args:
        names: which ones; all by default
        quick: fewer chunk sizes and lengths
        jobs: checks at a time, each in a process of its own
        json: print every finding as JSON
    """
    from fastweights.evaluate.check import check_everything

    reports = []
    for name, report in check_everything(names, quick=quick, jobs=jobs):
        reports.append((name, report))
        if not json:
            say(report.table())
            say()
        else:
            note(f"{name}: {'ok' if report.ok else 'FAILED'}")
    failed = [name for name, report in reports if not report.ok]
    if json:
        emit(
            {
                "ok": not failed,
                "reports": [
                    {"name": name, "ok": report.ok, "findings": [finding._asdict() for finding in report.findings]}
                    for name, report in reports
                ],
            }
        )
    else:
        counts = [(name, sum(f.ok is True for f in r.findings), len(r.failures), r.ok) for name, r in reports]
        table(("checked", "passed", "failed", "all well"), counts)
    return 1 if failed else 0
