"""Properties 3, 4, 5, 9 and 11 of a rule as a stream, on the memory in the middle of a document."""

from __future__ import annotations

import torch

from fastweights.core.conformance_equality import EXACT, borders
from fastweights.core.conformance_trial import Trial
from fastweights.core.properties import (
    Verdict,
    answers_of,
    causality,
    constant_state,
    document_equality,
    fork_safety,
    independence,
    not_applicable,
    padding_irrelevance,
    ragged_equality,
    reload_equality,
    row_equality,
    split_equality,
    worst,
)

NAN = float("nan")
"""What padding slots hold here: nothing of it may be read."""

without_gradients = torch.no_grad()


@without_gradients
def any_split(trial: Trial, time: int) -> Verdict:
    """Property 3: cut early, around a chunk's end, in thirds, into tokens, and at different places in every row."""
    chunk = trial.rule.chunk_size
    x, state = trial.draw(2, time, 1), trial.midway(2, 3)
    cuts = ([1], [chunk - 1, chunk], [time // 3, 2 * time // 3], list(range(1, time)))
    splits = [split_equality(trial, state, x, cut, EXACT) for cut in cuts]
    return worst([*splits, *[ragged_equality(trial, state, x, calls, EXACT, calls, NAN) for calls in (2, 5)]])


@without_gradients
def causal(trial: Trial, time: int) -> Verdict:
    """Property 4: at the first and last token, around a chunk's end and in the middle."""
    chunk = trial.rule.chunk_size
    x, other, state = trial.draw(2, time, 1), trial.draw(2, time, 2), trial.midway(2, 3)
    places = sorted({0, 1, chunk - 1, chunk, time // 2, time - 1} & set(range(time)))
    return worst(causality(trial, state, x, other, at) for at in places)


@without_gradients
def independent(trial: Trial, time: int) -> Verdict:
    """Property 5: no row and no head depends on another, to the bit; a row alone answers as in a batch."""
    x, other, state = trial.draw(2, time, 1), trial.draw(2, time, 2), trial.midway(2, 3)
    mixed = [independence(trial, state, x, other, axis, index) for axis in (0, 2) for index in (0, 1)]
    if trial.rule.grows:
        # A batch keeps room for its longest row, so only the answers are those of a row alone.
        return worst([*mixed, row_equality(answers_of(trial), state, x, EXACT)])
    return worst([*mixed, row_equality(trial, state, x, EXACT)])


@without_gradients
def padded(trial: Trial, time: int) -> Verdict:
    """Property 5: amount and side of padding, and what it holds, are irrelevant."""
    return padding_irrelevance(trial, trial.midway(2, 3), trial.draw(2, time, 1), EXACT, NAN)


@without_gradients
def separate(trial: Trial, time: int) -> Verdict:
    """Property 5: documents packed into a row answer as if each were read alone."""
    x, state = trial.draw(1, time, 1), trial.midway(1, 3)
    return document_equality(trial, state, trial.fresh(1), x, borders(time), EXACT)


@without_gradients
def constant(trial: Trial, time: int) -> Verdict:
    """Property 9: the state keeps its bytes over calls of any length, and its leaves do not alias."""
    if trial.rule.grows:
        return not_applicable("the state grows with the document")
    x = trial.draw(2, time, 1)
    return constant_state(trial, trial.midway(2, 3), [x, x[:, :1], torch.cat([x, x], 1)])


@without_gradients
def forks(trial: Trial, time: int) -> Verdict:
    """Property 11: reading on from a state never changes it."""
    return fork_safety(trial, trial.midway(2, 3), trial.draw(2, time, 1), trial.draw(2, time, 2))


@without_gradients
def reloaded(trial: Trial, time: int) -> Verdict:
    """Property 11: a state that was saved and loaded reads on to the same bits."""
    return reload_equality(trial, trial.midway(2, 3), trial.draw(2, time, 1))
