"""Commands about one memory: fill it, ask it, look at it, let it speak."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastweights.cli.terminal import Meter, bytes_text, emit, note, say, table
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.inference.header import MemoryHeader
    from fastweights.inference.memorize import Outcome, Reading
    from fastweights.inference.session import Session

_INTERRUPTED = 130
_DEFAULT_MODEL = "needle"


def memorize(
    paths: Annotated[tuple[str, ...], arg(metavar="PATH...")] = (),
    /,
    *,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.memory")],
    model: Annotated[str, arg(metavar="NAME|DIR")] = _DEFAULT_MODEL,
    resume: bool = False,
    force: bool = False,
    save_every: Annotated[float, arg(metavar="SECONDS")] = 60.0,
    json: bool = False,
) -> int:
    """Read texts once into a memory, and keep it in a file.

    Ctrl-C saves what was read; --resume with the same paths goes on from there and ends at the same bits. The file is
    whole at every moment.

    Args:
        paths: files, folders (searched for .txt .md .py .gz .zst), patterns, or - for standard input
        output: the memory file to write
        model: a shipped model or the folder of one
        resume: go on from the file: pass over what it has read, read the rest
        force: overwrite the file
        save_every: seconds from one save to the next while reading; 0 saves at the end only
        json: print the result as JSON
    """
    from fastweights.data.text import find_sources
    from fastweights.inference.memorize import check_output, remaining
    from fastweights.inference.memorize import memorize as read
    from fastweights.inference.opening import open_model
    from fastweights.inference.session import Session

    if not 0 <= save_every < float("inf"):
        raise UserError(f"the seconds between two saves must be 0 or more, not {save_every}")
    sources = find_sources(paths)
    check_output(output, sources, resume=resume, force=force)
    opened = open_model(model)
    if resume:
        session = Session.load(output, opened.model, opened.tokenizer)
        sources = remaining(session, sources, note)
    else:
        session = Session(opened.model, opened.tokenizer, model_name=opened.name)
    with Meter("reading") as meter:
        outcome = read(
            session,
            sources,
            output,
            save_every=save_every,
            on_progress=lambda reading: _show_reading(meter, reading),
            note=note,
        )
    for name, count in outcome.replaced.items():
        note(f"'{name}' has {count:,} bytes that are not UTF-8; each was replaced by U+FFFD")
    _report(outcome, session, output, json)
    if not outcome.finished:
        again = sys.argv[1:] if resume else [*(word for word in sys.argv[1:] if word != "--force"), "--resume"]
        note(f"interrupted; what was read is saved, go on with: fastweights {shlex.join(again)}")
        return _INTERRUPTED
    return 0


def _show_reading(meter: Meter, reading: Reading) -> None:
    from fastweights.train.progress import duration

    parts = [
        f"{reading.tokens:,} tokens",
        f"{reading.tokens / max(reading.seconds, 1e-9):,.0f} tokens/s",
        f"surprise {reading.surprise:.3g}",
        f"norm {reading.norm:.4g}",
    ]
    if reading.seconds_left is not None:
        parts.append(f"{duration(reading.seconds_left)} left")
    share = None if reading.bytes_total is None else reading.bytes_read / max(reading.bytes_total, 1)
    meter.show(share, " · ".join(parts))


def _report(outcome: Outcome, session: Session, output: Path, json: bool) -> None:
    header, speed = outcome.header, outcome.tokens / max(outcome.seconds, 1e-9)
    if json:
        emit(
            {
                "file": str(output),
                "finished": outcome.finished,
                "tokens": header.tokens[0],
                "tokens_this_time": outcome.tokens,
                "tokens_per_second": round(speed, 1),
                "replaced_bytes": outcome.replaced,
                "state_bytes": session.state_bytes(),
                "sources": header.to_dict()["sources"],
            }
        )
    else:
        size = bytes_text(output.stat().st_size)
        say(f"{output}: {header.tokens[0]:,} tokens from {len(header.sources)} sources in {size}")
        note(f"{outcome.tokens:,} tokens this time, {speed:,.0f} tokens/s")


def recall(
    file: Annotated[Path, arg(metavar="FILE.memory")],
    questions: Annotated[tuple[str, ...], arg(metavar="QUESTION...")] = (),
    /,
    *,
    model: Annotated[str, arg(metavar="NAME|DIR")] = "",
    max_tokens: int = 64,
    json: bool = False,
) -> None:
    """Ask a memory; one line per answer.

    Each question is asked as it is typed, on a line of its own, of the memory alone: neither questions nor answers
    change it.

    Args:
        file: the memory file
        questions: what to ask
        model: a shipped model or the folder of one; by default the one that the file names
        max_tokens: limit on the tokens of an answer
        json: print questions and answers as JSON
    """
    if not questions:
        raise UserError("no question: type one or several after the memory file, each in quotes")
    session = _load(file, model)
    # One after the other: a thousand questions must not need a thousand copies of the memory.
    answers = [session.ask(question, max_tokens=max_tokens) for question in questions]
    if not json:
        for answer in answers:
            say(" ".join(answer.text.split()))
        return
    pairs = zip(questions, answers, strict=True)
    said: list[dict[str, Any]] = [
        {
            "question": question,
            "answer": answer.text.strip(),
            "ended": answer.ended,
            "log_probability": round(answer.log_probability, 6),
        }
        for question, answer in pairs
    ]
    emit({"file": str(file), "answers": said})


def _load(file: Path, model: str) -> Session:
    from fastweights.inference.memory_file import read_header
    from fastweights.inference.opening import open_model
    from fastweights.inference.session import Session

    opened = open_model(model or read_header(file).model)
    return Session.load(file, opened.model, opened.tokenizer)


def inspect(file: Annotated[Path, arg(metavar="FILE.memory")], /, *, passages: int = 8, json: bool = False) -> None:
    """Show what a memory has read, how it is, and what surprised it most.

    Args:
        file: the memory file
        passages: how many of the most surprising passages to show
        json: print everything as JSON
    """
    from fastweights.inference.memory_file import read_header

    header = read_header(file)
    if json:
        emit({"file": str(file), "bytes": file.stat().st_size, **header.to_dict()})
        return
    say(f"{file}: {sum(header.tokens):,} tokens in {bytes_text(file.stat().st_size)}")
    say(f"model {header.model} ({header.fingerprint[:12]}), tokenizer {header.tokenizer}, version {header.library}")
    say()
    table(
        ("source", "tokens", "bytes", "complete", "SHA-256"),
        [(s.name, s.tokens, s.bytes if s.complete else None, s.complete, s.sha256[:12]) for s in header.sources],
    )
    _show_health(header)
    found = sorted(header.passages, key=lambda passage: -passage.surprise)[:passages]
    if found:
        say()
        table(
            ("surprise", "position", "source", "most surprising passages"),
            [(p.surprise, p.position, _source(header, p.position, p.row), " ".join(p.text.split())) for p in found],
        )


def _show_health(header: MemoryHeader) -> None:
    health = header.health
    say()
    rows: list[tuple[object, ...]] = [(f"norm of {name}", *values) for name, values in health.norms.items()]
    rows += [(f"surprise, {float(level):.1%} below", *values) for level, values in health.surprise.items()]
    rows.append(("tokens rejected as not finite", *health.rejected))
    table(("health", *(("value",) if header.rows == 1 else (f"row {row}" for row in range(header.rows)))), rows)
    if health.non_finite:
        say(f"damaged: {health.non_finite:,} numbers of the memory are not finite")


def _source(header: MemoryHeader, position: int, row: int) -> str:
    place = header.source_at(position, row)
    return "-" if place is None else place[0].name


def generate(
    prompt: str,
    /,
    *,
    model: Annotated[str, arg(metavar="NAME|DIR")] = "",
    memory: Annotated[Path | None, arg(metavar="FILE.memory")] = None,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Continue a prompt, from a memory if one is given; the memory stays as it is.

    Args:
        prompt: the text to continue
        model: a shipped model or the folder of one; by default the one that the memory names
        memory: a memory file to continue from
        max_tokens: limit on the tokens
        temperature: 0 always takes the likeliest token; higher is more varied
        top_p: draw from the likeliest tokens whose probability together reaches this
        seed: the same seed gives the same text
        json: print the text as JSON
    """
    from fastweights.inference.opening import open_model
    from fastweights.inference.session import Session

    if memory is not None:
        session = _load(memory, model)
    else:
        opened = open_model(model or _DEFAULT_MODEL)
        session = Session(opened.model, opened.tokenizer, model_name=opened.name)
    answer = session.generate(prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if json:
        emit({"prompt": prompt, "text": answer.text, "ended": answer.ended, "tokens": len(answer.ids)})
    else:
        say(prompt + answer.text)
