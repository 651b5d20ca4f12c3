"""The state of a fine-tuning on disk, so that a killed one goes on where it was."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora3d_ns.atomic_files import write_atomically

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(eq=False, kw_only=True)
class FineTuneState:
    """Where a training stands.

    Attributes:
        matrices: What has been learnt so far, in the order of the network's parameters.
        optimizer: State of AdamW.
        best: The matrices of the best epoch.
        best_epoch: That epoch; 0 before the first.
        epoch, position: The epoch that runs, and how many of its steps are done.
        losses: Objective of each step so far.
        held_out_errors: Before any step and after each epoch.
        rollbacks: How often a loss was not finite.
        seconds: Active time.
    """

    matrices: list[Tensor]
    optimizer: dict[str, Any]
    best: list[Tensor]
    best_epoch: int = 0
    epoch: int = 0
    position: int = 0
    losses: list[float] = field(default_factory=list)
    held_out_errors: list[float] = field(default_factory=list)
    rollbacks: int = 0
    seconds: float = 0.0

    def copy(self) -> "FineTuneState":
        """One that further training does not change."""
        return copy.deepcopy(self)


def write_state(path: Path, key: str, state: FineTuneState, good: FineTuneState | None = None) -> None:
    """Writes it all at once or not at all.

    Args:
        path: The file.
        key: Of all that the training depends on.
        state: Where the training stands.
        good: What a loss that is not finite would take it back to; None for the state itself.

    Raises:
        StorageFullError: The disk has no room.
        StorageError: The file cannot be written.
    """
    content = {"format": _FORMAT, "key": key, "state": vars(state), "good": None if good is None else vars(good)}
    write_atomically(path, lambda file: torch.save(content, file))


def read_state(path: Path, key: str) -> tuple[FineTuneState, FineTuneState] | None:
    """(state, good) of `write_state`, or None if there is nothing of this key.

    A damaged file is passed over with a warning.
    """
    if not path.is_file():
        return None
    try:
        # Tensors and plain values only: nothing in the file is executed.
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != _FORMAT or content["key"] != key:
            return None
        state = FineTuneState(**content["state"])
        good = state.copy() if content["good"] is None else FineTuneState(**content["good"])
    # A damaged archive shows itself in many ways; whatever it is, training begins anew.
    except Exception as error:  # noqa: BLE001
        logger.warning("%s is damaged (%s): fine-tuning begins anew", path, error)
        return None
    return state, good
