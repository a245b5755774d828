"""The continuum memory system: networks that learn the text's own next tokens while it is read (Nested Learning 7.1).

A stream is cut into windows of C_1 tokens, the chunk of the fastest level. While a window is read all weights stand
still. When the next window's first token comes, which is the label of this one's last, the gradient of the window's
next-token loss is taken, at the weights and the state with which the window began and not through earlier windows.
Every level adds it up, and steps where a position is a multiple of its own chunk, before that token is read. What is
unfinished is part of the state: the sums, the window's tokens, and the mixers' state at its start, from which the
window is read again where it lies in several calls. So a stream may be split anywhere.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.algorithm import newton_schulz
from fastweights.core.layout import make_layout
from fastweights.core.second_order import second_order, second_order_wanted
from fastweights.core.softmax import without_room
from fastweights.core.types import Surprise
from fastweights.errors import UserError
from fastweights.layers.continuum import ContinuumState, Offsets
from fastweights.layers.gates import exact_gate, gate_bias
from fastweights.layers.stream import Piece, Plan, chosen, mapped
from fastweights.models.config import ModelConfig

if TYPE_CHECKING:
    from fastweights.models.language_model import LanguageModel


class LearnerState(NamedTuple):
    """What the levels have not finished; tensors of weights in the order block, level, matrix.

    Attributes:
        sums: gradients added up since a level's last step, ``[B, outputs, inputs]``; of all but the fastest, which
            steps at every window.
        momenta: of the step, or empty.
        bases: what a nested level starts again from when the next slower one steps, or empty.
        window: int64 ``[B, C_1]``, tokens of the window that is being read, or has been and awaits its last label.
        filled: int64 ``[B]``, how many.
        start: every mixer's state where the window began.
    """

    sums: Offsets
    momenta: Offsets
    bases: Offsets
    window: Tensor
    filled: Tensor
    start: tuple[Any, ...]


class HopeState(NamedTuple):
    """State of a model with levels: one `ContinuumState` for each block, and what the levels have not finished."""

    blocks: tuple[ContinuumState, ...]
    learner: LearnerState


class StreamRead(NamedTuple):
    """What was read: the stream behind the last block, the state, surprises, and the stream that was asked for."""

    x: Tensor
    state: HopeState
    felt: tuple[Surprise, ...]
    tapped: Tensor | None


class _Live(NamedTuple):
    """A whole window that was read in this call: logits ``[B, C_1, vocabulary]`` and the offsets it was read with."""

    logits: Tensor
    offsets: Offsets


class Learner(nn.Module):
    """How the levels of a model learn: a step size for each block and level, learned by the outer training.

    Args:
        config: of the model; its ``levels`` are not empty.

    Attributes:
        warmth: all steps are multiplied by it; training raises it from 0.1 to 1 in its first tenth.
        direction: of every step, 1; -1 goes up the gradients.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.chunks = config, config.level_chunks
        self.least = min((chunk for chunk in self.chunks if chunk), default=0)
        self.steps = nn.Parameter(torch.full((config.depth, len(self.chunks)), gate_bias(0.5, config.gate_threshold)))
        self.warmth = self.direction = 1.0

    @property
    def learns(self) -> bool:
        """Whether any level changes."""
        return self.least > 0

    def init_state(self, model: LanguageModel, batch: int) -> HopeState:
        """The state of ``batch`` rows that have read nothing."""
        blocks = tuple(block.init_state(batch) for block in model.blocks)  # type: ignore[operator]
        offsets = self.weights_of(blocks)
        sums = tuple(torch.zeros_like(offsets[i]) for i in self._adding())
        momenta = mapped(torch.zeros_like, offsets) if self.config.level_optimiser == "momentum" else ()
        nested = self.places() if self.config.level_form == "nested" else []
        bases = tuple(torch.zeros_like(offsets[i]) for i, (_, level) in enumerate(nested) if self._slower(level))
        device = offsets[0].device if offsets else self.steps.device
        window = torch.zeros(batch, self.least, dtype=torch.int64, device=device)
        start = _mixers(blocks) if self.learns else ()
        filled = torch.zeros(batch, dtype=torch.int64, device=device)
        return HopeState(blocks, LearnerState(sums, momenta, bases, window, filled, start))

    def weights_of(self, blocks: tuple[ContinuumState, ...]) -> Offsets:
        """The offsets that change, in the order of a `LearnerState`."""
        return tuple(o for block in blocks for i, o in enumerate(block.offsets) if self.chunks[i // 2])

    def with_weights(self, blocks: tuple[ContinuumState, ...], offsets: Offsets) -> tuple[ContinuumState, ...]:
        """The blocks' states with other offsets."""
        given = iter(offsets)
        found = [[next(given) if self.chunks[i // 2] else o for i, o in enumerate(b.offsets)] for b in blocks]
        return tuple(block._replace(offsets=tuple(own)) for block, own in zip(blocks, found, strict=True))

    def sizes(self) -> Tensor:
        """Step size of each block and level, ``[depth, levels]``, from 0 to ``level_step``, and both are reached."""
        steps = self.steps.to(torch.promote_types(self.steps.dtype, torch.float32))
        return exact_gate(steps, self.config.gate_threshold) * (self.config.level_step * self.warmth * self.direction)

    def places(self) -> list[tuple[int, int]]:
        """Block and level of every changing matrix, in the order of a `LearnerState`."""
        every = range(len(self.chunks))
        return [(b, i) for b in range(self.config.depth) for i in every if self.chunks[i] for _ in range(2)]

    def _adding(self) -> list[int]:
        """The changing matrices whose gradients are added up over several windows."""
        return [i for i, (_, level) in enumerate(self.places()) if self.chunks[level] > self.least]

    def _slower(self, level: int) -> int:
        """The chunk of the next slower level that learns, 0 if there is none."""
        return (*self.chunks, 0)[level + 1]

    def read(
        self, model: LanguageModel, ids: Tensor, state: HopeState, plan: Plan, surprise: bool, tap: int | None
    ) -> StreamRead:
        """Reads packed ids ``[B, T]``, learning from what has been read; the plan is the call's."""
        outer = torch.is_grad_enabled()
        if not self.learns or not (outer or bool(self.sizes().any())):
            # Nothing will move, so nothing is kept for it either.
            model.prepare(plan)
            x, blocks, felt, tapped = model.through(model.embedding(ids), state.blocks, plan, surprise, tap)
            return StreamRead(x, state._replace(blocks=blocks), felt, tapped)
        if torch.is_inference_mode_enabled():
            raise UserError("levels learn by gradients, which torch.inference_mode() rules out: use torch.no_grad()")
        twice = outer and self.config.level_order == 2
        with torch.enable_grad(), second_order() if twice else nullcontext():
            return self._read(model, ids, state, plan, surprise, tap, outer)

    def _read(
        self,
        model: LanguageModel,
        ids: Tensor,
        state: HopeState,
        plan: Plan,
        surprise: bool,
        tap: int | None,
        outer: bool,
    ) -> StreamRead:
        pieces = plan.pieces(self.least)
        read: list[tuple[Tensor, ...]] = []
        felt: list[tuple[Surprise, ...]] = []
        live: _Live | None = None
        for n, (piece, part) in enumerate(zip(pieces.parts, pieces.cut(ids.unsqueeze(1)), strict=True)):
            tokens = part[:, 0]
            state = self.open(model, state, piece, tokens, live)
            offsets = self.weights_of(state.blocks)
            own = _leaves(offsets, outer)
            blocks = self.with_weights(state.blocks, own)
            model.prepare(piece.plan)
            x, blocks, surprised, tapped = model.through(model.embedding(tokens), blocks, piece.plan, surprise, tap)
            whole = tokens.shape[1] == self.least and bool(pieces.grid.fresh[:, n].all())
            live = _Live(model.logits(model.norm(x)), own) if whole and n + 1 < len(pieces.parts) else None
            state = self._advance(state, self.with_weights(blocks, offsets), piece, tokens)
            if not outer:
                x, tapped = x.detach(), None if tapped is None else tapped.detach()
                state, surprised = mapped(torch.Tensor.detach, (state, surprised))
            read.append((x,) if tapped is None else (x, tapped))
            felt.append(surprised)
        joined = [pieces.join([x.unsqueeze(1) for x in parts])[:, 0] for parts in zip(*read, strict=True)]
        streams = [
            Surprise(*[pieces.join(field) for field in zip(*one, strict=True)]) for one in zip(*felt, strict=True)
        ]
        return StreamRead(joined[0], state, tuple(streams), joined[1] if len(joined) > 1 else None)

    def open(
        self, model: LanguageModel, state: HopeState, piece: Piece, tokens: Tensor, live: _Live | None
    ) -> HopeState:
        """Where windows begin: documents start anew, finished windows are learned, the mixers' state is kept."""
        if piece.begins is not None:
            state = chosen(piece.begins, self.init_state(model, len(tokens)), state)
        if not piece.opens:
            return state
        due = piece.fresh & (state.learner.filled == self.least)
        if bool(due.any()):
            gradients = self.gradients(model, state, tokens[:, 0], due, live)
            state = self.step(state, gradients, due, piece.plan.layout.position[:, 0])
        start = _mixers(state.blocks)
        if not bool(piece.fresh.all()):
            start = without_room(chosen(piece.fresh, start, state.learner.start))
        filled = torch.where(piece.fresh, 0, state.learner.filled)
        return state._replace(learner=state.learner._replace(start=start, filled=filled))

    def gradients(
        self, model: LanguageModel, state: HopeState, following: Tensor, due: Tensor, live: _Live | None
    ) -> Offsets:
        """Gradients of each due row's next-token loss in its window, summed over tokens; 0 in the other rows."""
        twice, learner = second_order_wanted(), state.learner
        if live is None:
            own = _leaves(self.weights_of(state.blocks), twice)
            live = _Live(self._again(model, learner, self.with_weights(state.blocks, own)), own)
        labels = torch.cat([learner.window[:, 1:], following[:, None]], 1)
        wide = live.logits.to(torch.promote_types(live.logits.dtype, torch.float32))
        losses = F.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        total = torch.where(due[:, None] & torch.isfinite(losses), losses, 0.0).sum()
        # The caller's autocast would narrow what the backward passes compute in float32.
        with torch.autocast(total.device.type, enabled=False):
            found = torch.autograd.grad(total, live.offsets, retain_graph=True, create_graph=twice)
        return _sound(found if twice else tuple(g.detach() for g in found))

    def _again(self, model: LanguageModel, learner: LearnerState, blocks: tuple[ContinuumState, ...]) -> Tensor:
        """Reads the window again from its start: logits ``[B, C_1, vocabulary]``."""
        began = tuple(block._replace(mixer=start) for block, start in zip(blocks, learner.start, strict=True))
        present = torch.arange(self.least, device=learner.window.device) < learner.filled[:, None]
        layout = make_layout(model.blocks[0].position(began[0]), self.least, present)  # type: ignore[operator]
        plan = Plan(layout)
        model.prepare(plan)
        x, *_ = model.through(model.embedding(learner.window), began, plan, False, None)
        return model.logits(model.norm(x))

    def step(self, state: HopeState, gradients: Offsets, due: Tensor, position: Tensor) -> HopeState:
        """Adds gradients up, and moves every level whose chunk ends at this position."""
        learner, places = state.learner, self.places()
        sums, adding = list(gradients), self._adding()
        for i, total in zip(adding, learner.sums, strict=True):
            sums[i] = total + sums[i]
        offsets, momenta, bases = list(self.weights_of(state.blocks)), list(learner.momenta), list(learner.bases)
        sizes = self.sizes()
        for level, chunk in enumerate(self.chunks):
            now = due & (position % chunk == 0) if chunk else due & False
            if not bool(now.any()):
                continue
            mine = [i for i, (_, other) in enumerate(places) if other == level]
            moves = self._moves([sums[i] / chunk for i in mine], [momenta[i] for i in mine] if momenta else None)
            where = now[:, None, None]
            for i, (move, momentum) in zip(mine, moves, strict=True):
                size = sizes[places[i][0], level].to(move.dtype)
                offsets[i] = torch.where(where, offsets[i] - size * move, offsets[i])
                sums[i] = torch.where(where, 0.0, sums[i])
                if momentum is not None:
                    momenta[i] = torch.where(where, momentum, momenta[i])
        if bases:
            self._restart(offsets, momenta, bases, due, position)
        rest = tuple(sums[i] for i in adding)
        after = learner._replace(sums=rest, momenta=tuple(momenta), bases=tuple(bases))
        return HopeState(self.with_weights(state.blocks, tuple(offsets)), after)

    def _moves(self, means: list[Tensor], momenta: list[Tensor] | None) -> list[tuple[Tensor, Tensor | None]]:
        """What the steps of one level subtract, and its new momenta; clipped together, row by row."""
        squares = torch.stack([m.flatten(1).square().sum(1) for m in means]).sum(0)
        clip = self.config.level_clip
        scale = (clip * torch.rsqrt(squares.clamp_min(clip**2)))[:, None, None]
        means = [m * scale for m in means]
        if momenta is not None:
            new = [0.9 * old + m for old, m in zip(momenta, means, strict=True)]
            return [(m, m) for m in new]
        if self.config.level_optimiser == "muon":
            return [(newton_schulz(m, 5, 1e-7), None) for m in means]
        return [(m, None) for m in means]

    def _restart(
        self, offsets: list[Tensor], momenta: list[Tensor], bases: list[Tensor], due: Tensor, position: Tensor
    ) -> None:
        """Where a slower level steps, the next faster one starts again (eq. 72), from a start that has learned, too.

        The start moves by the mean of the steps taken since: first-order meta-learning (Reptile, arXiv 1803.02999).
        Its momentum starts again as well. What changes is replaced in the lists.
        """
        restarting = [(i, level) for i, (_, level) in enumerate(self.places()) if self._slower(level)]
        for n, (i, level) in enumerate(restarting):
            chunk, slower = self.chunks[level], self._slower(level)
            now = (due & (position % slower == 0))[:, None, None]
            moved = bases[n] + (offsets[i] - bases[n]) * (chunk / slower)
            bases[n] = torch.where(now, moved, bases[n])
            offsets[i] = torch.where(now, moved, offsets[i])
            if momenta:
                momenta[i] = torch.where(now, 0.0, momenta[i])

    def _advance(self, state: HopeState, blocks: tuple[ContinuumState, ...], piece: Piece, tokens: Tensor) -> HopeState:
        """Puts the tokens that were read into the window."""
        learner, layout = state.learner, piece.plan.layout
        places = piece.slots if layout.real is None else torch.where(layout.real, piece.slots, self.least)
        room = F.pad(learner.window, (0, 1)).scatter(1, places, tokens)
        after = learner._replace(window=room[:, : self.least].clone(), filled=learner.filled + layout.length)
        return HopeState(blocks, after)

    def moved(self, state: HopeState) -> list[float]:
        """How far each level's weights have moved from where training left them: the norm over blocks and rows."""
        squares = [0.0] * len(self.chunks)
        for offset, (_, level) in zip(self.weights_of(state.blocks), self.places(), strict=True):
            squares[level] += float(offset.detach().square().sum())
        return [square**0.5 for square in squares]


def _mixers(blocks: tuple[ContinuumState, ...]) -> tuple[Any, ...]:
    """A copy of every mixer's state: no two tensors of a state share memory."""
    return tuple(mapped(torch.clone, block.mixer) for block in blocks)


def _sound(gradients: Offsets) -> Offsets:
    """Gradients of 0 in rows where the square of any of them is not finite: such a window teaches nothing."""
    squares = torch.stack([g.detach().flatten(1).square().sum(1) for g in gradients]).sum(0)
    sound = torch.isfinite(squares)
    if bool(sound.all()):
        return gradients
    return tuple(torch.where(sound[:, None, None], g, 0.0) for g in gradients)


def _leaves(offsets: Offsets, outer: bool) -> Offsets:
    """The same offsets as tensors of one window alone, so that its gradient does not reach into earlier ones."""
    if outer:
        return tuple(o.view_as(o) if o.requires_grad else o.detach().requires_grad_() for o in offsets)
    return tuple(o.detach().requires_grad_() for o in offsets)


def stack_levels(model: LanguageModel, levels: str, step: float = 1.0) -> LanguageModel:
    """A trained model whose networks become the fastest levels of continua (Nested Learning 7.3).

    The further levels start as networks that add nothing, so that the answers are the model's own until the first step;
    with a step of 0 they stay so: bit for bit, and up to rounding where gradients are asked for, since the text is cut
    into windows then.

    Args:
        model: without levels.
        levels: their chunks, as in `ModelConfig.levels`.
        step: size that every level's step starts from, as a share of ``level_step``; 1 is nearly all of it.

    Raises:
        UserError: the model has levels already, none are given, or they would stand side by side.
    """
    if model.learner is not None:
        raise UserError(f"the model already has levels, of {model.config.levels} tokens")
    if not levels or model.config.level_form == "headwise":
        raise UserError("a trained model becomes the first of a chain of levels: name their chunks, such as 16,64")
    width = model.config.hidden / model.config.dim
    stacked = type(model)(replace(model.config, levels=levels, expansion=width))
    given = dict(model.state_dict())
    for n, block in enumerate(stacked.blocks):
        prefix, chain = f"blocks.{n}.", f"blocks.{n}.continuum."
        given[f"{chain}norms.0.weight"] = given.pop(f"{prefix}feedforward_norm.weight")
        for name in ("gate_up", "down"):
            given[f"{chain}networks.0.{name}.weight"] = given.pop(f"{prefix}feedforward.{name}.weight")
        for further in list(block.continuum.networks)[1:]:  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(further.down.weight)
    given = {name: value for name, value in stacked.state_dict().items() if _is_new(name)} | given
    stacked.load_state_dict(given)
    assert stacked.learner is not None
    shut = -1e4 if step == 0 else gate_bias(min(step, 0.999), model.config.gate_threshold)
    nn.init.constant_(stacked.learner.steps, shut)
    stacked.recompute = model.recompute
    return stacked.to(model.embedding.weight).train(model.training)


def _is_new(name: str) -> bool:
    """Whether a parameter is one that only levels have: step sizes, and all networks but the first."""
    chain = re.fullmatch(r"blocks\.\d+\.continuum\.(?:norms|networks)\.(\d+)\..*", name)
    return name == "learner.steps" or (chain is not None and chain[1] != "0")
