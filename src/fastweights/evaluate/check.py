"""Every conformance suite of the package, one report after the other."""

from __future__ import annotations

import difflib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import torch

from fastweights.core.combinations import check_combinations, pairwise_cover
from fastweights.core.conformance import FULL, QUICK, Report, check_rule
from fastweights.core.presets import PRESETS
from fastweights.errors import UserError
from fastweights.models.conformance import wirings


def check_everything(names: Sequence[str] = (), *, quick: bool = False, jobs: int = 1) -> Iterator[tuple[str, Report]]:
    """Check every preset rule, combinations of the four choices, every wiring and a whole model, or those named.

    Args:
        names: What to check; nothing for all.
        quick: Fewer chunk sizes and lengths, and no compilation of blocks.
        jobs: Checks at a time; of several each has a process and one thread.

    Yields:
        A name and its report, as soon as it is done; in order if there is one job.

    Raises:
        UserError: A name that is not known, or no job, before anything is checked.
    """
    if jobs < 1:
        raise UserError(f"there must be at least one job, not {jobs}")
    checks = _checks(quick)
    for name in names:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(checks)}"
            raise UserError(f"there is nothing named {name!r} to check; {hint}")
    wanted = tuple(names or checks)
    if jobs > 1:
        yield from _side_by_side(wanted, quick, jobs)
    else:
        for name in wanted:
            yield name, checks[name]()


def _side_by_side(names: Sequence[str], quick: bool, jobs: int) -> Iterator[tuple[str, Report]]:
    # Not forked: threads of torch do not survive that.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            # Combinations, blocks and models stand last and take longest: they begin first.
            names_of = {pool.submit(_check, name, quick): name for name in reversed(names)}
            for done in as_completed(names_of):
                yield names_of[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _check(name: str, quick: bool) -> Report:
    return _checks(quick)[name]()


def _checks(quick: bool) -> dict[str, Callable[[], Report]]:
    grid = QUICK if quick else FULL
    rules = {name: partial(check_rule, preset(), grid=grid, title=name) for name, preset in PRESETS.items()}
    return {**rules, "combinations": partial(_combinations, quick), **wirings(quick)}


def _combinations(quick: bool) -> Report:
    return check_combinations(pairwise_cover(), range(5, 12) if quick else ())
