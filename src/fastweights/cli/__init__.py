"""The command line: `fastweights COMMAND`.

Data goes to standard output, progress and notes to standard error. Exit status: 0 done; 1 something failed (a property
of a rule, a training run); 2 bad input, in one sentence; 130 interrupted, with what was done saved.

Torch takes seconds to import, so each command imports what it needs when it runs, and `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro
from tyro.extras import SubcommandApp

from fastweights.cli import catalogue, comparison, language, memory, runs
from fastweights.cli.terminal import note
from fastweights.errors import FastweightsError, UserError

INTERRUPTED = 130


def app(words: Sequence[str]) -> SubcommandApp:
    """The commands; those of `evaluate` only where it is asked for, since their names take a while to import."""
    found = SubcommandApp()
    commands: tuple[Callable[..., Any], ...] = (
        memory.memorize,
        memory.recall,
        memory.inspect,
        memory.generate,
        catalogue.models,
        catalogue.rules,
        catalogue.explain,
        catalogue.check,
        runs.train,
        comparison.compare,
        comparison.report,
    )
    for command in commands:
        found.command(command)
    evaluate = SubcommandApp()
    for command in (runs.cases, language.perplexity, language.surprise):
        evaluate.command(command)
    if words[:1] == ["evaluate"]:
        from fastweights.evaluate.text_tasks import TASKS

        for name, asked in TASKS.items():
            evaluate.command(name=name, help=asked)(partial(runs.task, name))
    found.command(evaluate, name="evaluate", help="Measure a model on a benchmark's task or on cases of your own.")
    found.command(runs.demo)
    return found


def main() -> int:
    """Run the command that `sys.argv` names; returns the exit status."""
    # Also where a shell starts the process in the background with interrupts ignored; and `kill` saves like Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(sys.argv[1:]).cli(
            prog="fastweights",
            description="Sequence models whose memory is a small network that keeps learning while it reads.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        sys.stdout.flush()
    except UserError as error:
        note(f"fastweights: {error}")
        return 2
    except FastweightsError as error:
        note(f"fastweights: {error}")
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough; the interpreter must not try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        note(f"fastweights: the output cannot be written: {(error.strerror or str(error)).lower()}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return int(status or 0)
