"""Commands about text as such: what it costs a model, and what surprises it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastweights.cli.runs import DEFAULT_MODEL
from fastweights.cli.terminal import Meter, say, table, typed
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.evaluate.perplexity import DocumentStep
    from fastweights.evaluate.surprise import Response, SurpriseReport


def perplexity(
    *,
    json: Annotated[Path, arg(metavar="OUT")],
    model: Annotated[str, arg(metavar="NAME|DIR")] = DEFAULT_MODEL,
    text: Annotated[tuple[str, ...], arg(metavar="PATH...")] = (),
    wikitext: Annotated[Path | None, arg(metavar="FILE")] = None,
    max_tokens: int = 0,
    reset_every: int = 0,
) -> None:
    """Count what documents cost a model: bits per byte, perplexity, by the place in the document.

    Documents that are in OUT already are kept, so an interrupted evaluation goes on where it was.

    Args:
        json: where the results go, as one JSON object
        model: a shipped model or the folder of one
        text: files, folders or patterns, each file a document, instead of the shipped novels
        wikitext: a raw file of WikiText, each page a document; words and bytes are counted before its spaces are undone
        max_tokens: of a document; 0 for all
        reset_every: the model forgets everything after so many tokens; 0 for never
    """
    from fastweights.evaluate.perplexity import (
        evaluate_documents,
        novel_documents,
        text_documents,
        wikitext_documents,
    )
    from fastweights.inference.opening import open_model

    if text and wikitext:
        raise UserError("name texts or a file of WikiText, not both")
    documents = wikitext_documents(wikitext) if wikitext else text_documents(text) if text else novel_documents()
    opened = open_model(model)
    with Meter("reading") as meter:
        found = evaluate_documents(
            opened.model,
            opened.tokenizer,
            opened.name,
            documents,
            json,
            max_tokens=max_tokens,
            reset_every=reset_every,
            command=typed(),
            on_step=lambda step: _show(meter, step),
        )
    table(
        ("tokens before", "tokens", "bits per byte"),
        [(f"{place['below']:,}", f"{place['tokens']:,}", f"{place['bits_per_byte']:.3f}") for place in found["places"]],
    )
    interval = "" if found["interval"] is None else " ({:.3f} to {:.3f})".format(*found["interval"])
    say(f"{found['bits_per_byte']:.3f} bits per byte{interval} over {found['done']} documents")
    say(f"perplexity {found['token_perplexity']:,.2f} a token, {found['word_perplexity']:,.6g} a word")


def _show(meter: Meter, step: DocumentStep) -> None:
    status = f"{step.done:,} of {step.documents:,} documents · {step.tokens:,} tokens"
    status += f" · {step.tokens / max(step.seconds, 1e-9):,.0f} tokens/s"
    if step.bits_per_byte is not None:
        status += f" · {step.bits_per_byte:.3f} bits per byte"
    meter.show(step.done / step.documents, status)


def surprise(
    *,
    json: Annotated[Path, arg(metavar="OUT")],
    model: Annotated[str, arg(metavar="NAME|DIR")] = DEFAULT_MODEL,
    text: Annotated[tuple[str, ...], arg(metavar="PATH...")] = (),
    tokens: int = 16_384,
) -> None:
    """See whether surprise goes with what is hard to predict, with new topics, and with what is new.

    Args:
        json: where the numbers go, as one JSON object
        model: a shipped model or the folder of one
        text: two files, instead of two shipped novels
        tokens: to read of the first text, and of both in turns
    """
    from torch import get_num_threads

    from fastweights.evaluate.cells import circumstances
    from fastweights.evaluate.ledger import write_results
    from fastweights.evaluate.perplexity import novel_documents, text_documents
    from fastweights.evaluate.surprise import surprise_report
    from fastweights.inference.opening import open_model

    if not json.absolute().parent.is_dir() or json.is_dir():
        raise UserError(f"the numbers cannot be written to '{json}': name a file in a folder that exists")
    documents = text_documents(text) if text else novel_documents()[:2]
    if len(documents) != 2:
        raise UserError(f"surprise is compared on two texts, not on {len(documents)}: name two files")
    opened = open_model(model)
    total = 2 * tokens
    with Meter("reading") as meter:
        found = surprise_report(
            opened.model,
            opened.tokenizer,
            *(document.open() for document in documents),
            tokens=tokens,
            on_read=lambda read: meter.show(min(1.0, read / total), f"{read:,} tokens"),
        )
    facts: dict[str, Any] = {"kind": "surprise", "model": opened.name, "fingerprint": opened.model.fingerprint()}
    facts |= {"texts": [document.name for document in documents], "command": typed()}
    device = next(opened.model.parameters()).device
    facts |= circumstances(str(device), get_num_threads())
    write_results(json, facts | found.to_dict())
    _show_surprise(found)


def _show_surprise(found: SurpriseReport) -> None:
    layers = zip(found.correlation, found.switches, found.repetitions, strict=True)
    rows = [
        (
            layer,
            f"{correlation:.2f}",
            *map(_around, switches),
            f"{repeated[-1] / repeated[0]:.2f}" if repeated[0] else "",
        )
        for layer, (correlation, switches, repeated) in enumerate(layers)
    ]
    titles = "layer", "rank correlation with bits", "surprise: change at a switch, before / behind / elsewhere"
    table((*titles, "write gate", "forget gate", "last reading of a passage to its first"), rows)


def _around(response: Response) -> str:
    means = " / ".join(f"{mean.mean:.3g}" for mean in response[:3])
    return f"{response.change.mean:+.2g} ± {response.change.half:.2g}, {means}"
