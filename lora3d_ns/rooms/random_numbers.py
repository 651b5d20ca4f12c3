"""Random numbers that depend on what they are for, never on what was drawn before them.

Every number is a hash of (seed, scene, purpose, position). A scene is therefore the same in every batch, and thousands
of scenes are drawn at once.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: each bit of the result depends on all bits of the word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class SceneRandom:
    """Draws for many scenes at once; the first axis of all results is the scene.

    Args:
        seed: Seed of the whole set.
        scene_indices: Which scenes of the set.
    """

    def __init__(self, seed: int, scene_indices: Sequence[int] | IntArray) -> None:
        indices = np.asarray(scene_indices, dtype=np.int64).astype(np.uint64)
        seed_word = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GOLDEN)
        self._scene_words = _mix(_mix(indices + _GOLDEN) ^ seed_word)
        self.scene_count = len(indices)

    def uniform(self, purpose: str, *shape: int, low: float = 0.0, high: float = 1.0) -> FloatArray:
        """Uniform draws in [low, high), shape [scenes, *shape], fixed by the purpose."""
        count = int(np.prod(shape, dtype=np.int64))
        purpose_word = np.array([zlib.crc32(purpose.encode())], dtype=np.uint64)
        counters = _mix(np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN ^ _mix(purpose_word + _GOLDEN))
        words = _mix(self._scene_words[:, None] ^ counters[None, :])
        unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (low + (high - low) * unit).reshape(self.scene_count, *shape)

    def integers(self, purpose: str, *shape: int, low: int = 0, high: int) -> IntArray:
        """Whole numbers in [low, high), shape [scenes, *shape]."""
        return np.floor(self.uniform(purpose, *shape, low=float(low), high=float(high))).astype(np.int64)
