"""Where a model computes."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from fastweights.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


def moved(module: Module, device: str) -> Module:
    """The module on a device, as torch writes it: ``cpu``, ``cuda:0``, ``mps``.

    Raises:
        UserError: There is no such device on this machine.
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {device!r} on this machine: name one that is, such as cpu") from error
