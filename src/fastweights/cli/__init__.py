"""The command line: `fastweights COMMAND`.

Data goes to standard output, progress and notes to standard error. Exit status: 0 done; 1 something failed (a property
of a rule, a training run); 2 bad input, in one sentence; 130 interrupted, with what was done saved.

Torch takes seconds to import, so each command imports what it needs when it runs, and `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys

import tyro
from tyro.extras import SubcommandApp

from fastweights.cli import catalogue, memory, runs
from fastweights.cli.terminal import note
from fastweights.errors import FastweightsError, UserError

INTERRUPTED = 130

_EVALUATE = SubcommandApp()
_EVALUATE.command(runs.cases)

_APP = SubcommandApp()
for _command in (
    memory.memorize,
    memory.recall,
    memory.inspect,
    memory.generate,
    catalogue.models,
    catalogue.rules,
    catalogue.explain,
    catalogue.check,
    runs.train,
):
    _APP.command(_command)
_APP.command(_EVALUATE, name="evaluate", help="Measure a model on cases of your own.")
_APP.command(runs.demo)


def main() -> int:
    """Run the command that `sys.argv` names; returns the exit status."""
    # Also where a shell starts the process in the background with interrupts ignored; and `kill` saves like Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _APP.cli(
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
