"""Every conformance suite of the package, one report after the other."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fastweights.core.combinations import check_combinations, pairwise_cover
from fastweights.core.conformance import FULL, QUICK, Report, check_rule
from fastweights.core.presets import PRESETS
from fastweights.errors import UserError
from fastweights.models.conformance import wirings


def check_everything(names: Sequence[str] = (), *, quick: bool = False) -> Iterator[tuple[str, Report]]:
    """Check every preset rule, combinations of the four choices, every wiring and a whole model, or those named.

    Args:
        names: What to check; nothing for all.
        quick: Fewer chunk sizes and lengths, and no compilation of blocks.

    Yields:
        A name and its report, as soon as it is done.

    Raises:
        UserError: A name that is not known, before anything is checked.
    """
    checks = _checks(quick)
    for name in names:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(checks)}"
            raise UserError(f"there is nothing named {name!r} to check; {hint}")
    for name in names or checks:
        yield name, checks[name]()


def _checks(quick: bool) -> dict[str, Callable[[], Report]]:
    grid = QUICK if quick else FULL
    rules = {name: partial(check_rule, preset(), grid=grid, title=name) for name, preset in PRESETS.items()}
    return {**rules, "combinations": partial(_combinations, quick), **wirings(quick)}


def _combinations(quick: bool) -> Report:
    return check_combinations(pairwise_cover(), range(5, 12) if quick else ())
