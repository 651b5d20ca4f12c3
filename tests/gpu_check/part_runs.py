"""Runs a part of the check in this process."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from lora3d_ns.gpu_check import common
from lora3d_ns.gpu_check.parts import PartSettings, part_function
from lora3d_ns.gpu_check.rows import Row


def rows_of(part: str, *, device: str = "cpu", peer: bool = False) -> dict[str, Row]:
    """The rows of a tiny run by their names, no two of which are alike."""
    # There is no device to make room on, and a test process has much to look through.
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(common, "gc"):
        settings = PartSettings(device=device, tiny=True, peer=peer, folder=Path(folder))
        rows = list(part_function(part)(settings))
    by_name = {row.name: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def assert_measured(rows: Mapping[str, Row]) -> None:
    """Every row has a figure, and none failed."""
    for row in rows.values():
        assert not row.failed, row
        assert row.value is not None, row
        assert math.isfinite(row.value), row
        assert row.value >= 0, row


def figure(rows: Mapping[str, Row], name: str) -> float:
    """A row's figure."""
    value = rows[name].value
    assert value is not None
    return value
