"""OpenEXR files with one channel of 32-bit floats, which hold depth as it is.

Written here since OpenCV, the one library of ours that could, does so only for processes that were started with
OPENCV_IO_ENABLE_OPENEXR set. The format: https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

import struct
import zlib

import numpy as np
from jaxtyping import Float

_MAGIC, _VERSION = 20000630, 2
_FLOAT, _ZIP = 2, 3
_ROWS_PER_BLOCK = 16
"""That is what ZIP compression means by a block."""
_CHANNEL = "Y"
"""Luminance, the only single channel that OpenCV reads."""


def exr_bytes(values: Float[np.ndarray, "height width"]) -> bytes:
    """An image of one channel, exact in float32, losslessly compressed."""
    height, width = values.shape
    values = values.astype("<f4")
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel = _CHANNEL.encode() + b"\0" + struct.pack("<iBxxxii", _FLOAT, 0, 1, 1) + b"\0"
    header = struct.pack("<ii", _MAGIC, _VERSION) + b"".join(
        [
            _attribute("channels", "chlist", channel),
            _attribute("compression", "compression", bytes([_ZIP])),
            _attribute("dataWindow", "box2i", window),
            _attribute("displayWindow", "box2i", window),
            _attribute("lineOrder", "lineOrder", b"\0"),
            _attribute("pixelAspectRatio", "float", struct.pack("<f", 1.0)),
            _attribute("screenWindowCenter", "v2f", struct.pack("<ff", 0.0, 0.0)),
            _attribute("screenWindowWidth", "float", struct.pack("<f", 1.0)),
            b"\0",
        ]
    )
    blocks = []
    for row in range(0, height, _ROWS_PER_BLOCK):
        data = _compressed(values[row : row + _ROWS_PER_BLOCK].tobytes())
        blocks.append(struct.pack("<ii", row, len(data)) + data)
    begins = len(header) + 8 * len(blocks) + np.cumsum([0, *(len(block) for block in blocks[:-1])])
    return header + begins.astype("<u8").tobytes() + b"".join(blocks)


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value


def _compressed(raw: bytes) -> bytes:
    """Even bytes before odd ones, differences of neighbours, deflated; as it was where that saves nothing."""
    octets = np.frombuffer(raw, dtype=np.uint8)
    sorted_octets = np.concatenate([octets[::2], octets[1::2]])
    differences = sorted_octets.copy()
    differences[1:] = sorted_octets[1:] - sorted_octets[:-1] + np.uint8(128)
    deflated = zlib.compress(differences.tobytes())
    return deflated if len(deflated) < len(raw) else raw
