"""What several parts of the check do the same way: a small network to try them with, and rows that fail alone."""

import dataclasses
import gc
import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from lora3d_ns.errors import MissingPackageError
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.network.configuration import Dust3rConfig

logger = logging.getLogger(__name__)

TINY_NETWORK = Dust3rConfig(
    encoder_width=48,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=48,
    decoder_depth=2,
    decoder_heads=2,
    head="linear",
    image_size=64,
)
"""What mini-dust3r has too, in next to no time."""

TINY_DPT_NETWORK = dataclasses.replace(
    TINY_NETWORK, decoder_depth=4, head="dpt", dpt_channels=(12, 24, 48, 96), dpt_features=16
)
"""All kinds of layers that the official network has."""


def independent(name: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows, up to where making them fails; then one that says how, so that the part goes on.

    What a failure held on the device is given back. A package that is missing is no failure.

    Args:
        name: Of that last row.
        rows: Makes them, one by one.
    """
    try:
        yield from rows()
    except MissingPackageError as error:
        yield Row(name=name, note=str(error))
    # One thing that fails must not take the others along; the table is where its user looks.
    except Exception as error:
        logger.exception("%s failed", name)
        yield Row(name=name, note=f"{type(error).__name__}: {error}", failed=True)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def number(record: dict[str, object], key: str) -> float:
    """A figure of a benchmark's record."""
    value = record[key]
    assert isinstance(value, (int, float))
    return float(value)
