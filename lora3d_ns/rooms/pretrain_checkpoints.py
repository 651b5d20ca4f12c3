"""Checkpoints and log of a training that can be killed at any moment and goes on where it was."""

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch

from lora3d_ns.atomic_files import remove_leftovers, write_atomically, write_text_atomically
from lora3d_ns.errors import CheckpointError

_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d{9})\.pt")


class UnusableTrainingError(CheckpointError):
    """The training folder cannot be continued as asked."""


def checkpoint_files(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)), reverse=True)


def write_checkpoint(folder: Path, step: int, state: Mapping[str, object], *, keep: int = 2) -> Path:
    """Writes a checkpoint all at once or not at all, then removes all but the last `keep`.

    The file is on the disk before it gets its name, so neither a kill nor a power cut leaves half a checkpoint as the
    newest one.

    Raises:
        StorageError: It cannot be written; `StorageFullError` if the disk is full.
    """
    remove_leftovers(folder)
    path = folder / f"checkpoint-{step:09d}.pt"
    write_atomically(path, partial(torch.save, dict(state)))
    for old in checkpoint_files(folder)[keep:]:
        old.unlink()
    return path


def read_newest_checkpoint(folder: Path) -> dict[str, object] | None:
    """The newest checkpoint that can be read, or None if there is none at all.

    A damaged one is passed over with a warning.

    Raises:
        UnusableTrainingError: There are checkpoints, and none can be read.
    """
    files = checkpoint_files(folder)
    for path in files:
        try:
            # Tensors and plain values only: nothing in the file is executed.
            state = torch.load(path, map_location="cpu", weights_only=True)
        # A damaged archive shows itself in many ways; whatever it is, the one before may be whole.
        except Exception as error:  # noqa: BLE001
            _LOGGER.warning("%s is damaged (%s); going back to the checkpoint before it", path, error)
            continue
        if isinstance(state, dict) and "step" in state:
            return cast(dict[str, object], state)
        _LOGGER.warning("%s is no checkpoint of a pretraining; going back to the one before it", path)
    if files:
        raise UnusableTrainingError(
            "none of the checkpoints can be read", way_out="Delete the folder to begin anew", path=folder
        )
    return None


class TrainingLog:
    """One JSON object per line, each with its step; cut back to the checkpoint's step when a training goes on.

    Args:
        path: The file.
        resumed_step: Rows of later steps belong to work that was lost, and are removed.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self.path = path
        kept = [row for row in read_log(path) if cast(int, row["step"]) <= resumed_step]
        write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row, which must have a `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")


def read_log(path: Path) -> list[dict[str, object]]:
    """All whole rows of a log; a last line that was cut off by a kill is left out."""
    rows: list[dict[str, object]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def draw_curves(log: Path, picture: Path) -> None:
    """Writes the curves of a log as a PNG: the objective's parts, and each validation's medians."""
    from matplotlib.figure import Figure

    rows = read_log(log)
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "validation" in row]
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for panel, (title, names) in zip(
        axes[:3],
        (
            ("normalised point error", ("error_first", "error_second")),
            ("objective", ("loss", "confidence")),
            ("matching (InfoNCE)", ("matching",)),
        ),
        strict=True,
    ):
        for name in names:
            thousands = [cast(int, row["pairs"]) / 1000 for row in steps]
            panel.plot(thousands, [row[name] for row in steps], label=name.replace("_", " "))
        # The confidence loss may become negative.
        panel.set(title=title, xlabel="thousand pairs", yscale="symlog" if "confidence" in names else "log")
        panel.legend()
    for panel, (title, name) in zip(
        axes[3:],
        (
            ("rotation error, degrees", "rotation_deg_median"),
            ("translation direction error, degrees", "translation_deg_median"),
            ("point error / mean depth", "point_error_median"),
        ),
        strict=True,
    ):
        for domain in sorted({name for row in validations for name in cast(dict, row["validation"])}):
            points = [
                (cast(int, row["pairs"]) / 1000, cast(dict, row["validation"])[domain][name])
                for row in validations
                if domain in cast(dict, row["validation"])
            ]
            panel.plot(*zip(*points, strict=True), marker=".", label=domain)
        panel.set(title=f"validation: {title}", xlabel="thousand pairs", ylim=(0, None))
        panel.legend()
    figure.savefig(picture, dpi=80)
