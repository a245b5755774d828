"""Which parameters decay: the slow weight matrices of a model's blocks, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastweights.layers.memory import MemoryLayer


def parameter_groups(model: nn.Module, blocks: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: decay on the matrices of projections, of networks and of LSTMs inside the blocks.

    Gates, initial memories, decays, norms, biases, convolutions, persistent tokens, embeddings and heads are spared.

    Args:
        model: all of its parameters are in one of the groups.
        blocks: inside the model.
        weight_decay: of the first group; that of the second is 0.
    """
    gates = {id(layer.gates) for layer in blocks.modules() if isinstance(layer, MemoryLayer)}
    decayed: list[Tensor] = []
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear) and id(layer) not in gates:
            decayed.append(layer.weight)
        elif isinstance(layer, nn.LSTM):
            decayed += [parameter for parameter in layer.parameters() if parameter.dim() == 2]
    chosen = set(map(id, decayed))
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
