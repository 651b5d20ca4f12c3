"""Results of stages in one file each: our dataclasses, and what they are made of, in safetensors with a checksum.

The tensors lie in the file under the names t0, t1, ...; the header's metadata hold the rest as JSON in `structure`:

    None, bool, int, str, float     themselves; {"float": "nan"} (or "inf", "-inf") where JSON has no number
    tensors                         {"tensor": 3}; a tensor that occurs twice is stored once, and shared again when read
    tuples and lists                {"tuple": [...]}, {"list": [...]}
    mappings                        {"mapping": [[key, value], ...]}; they come back as dict
    dataclasses                     {"type": "PairGraph", "fields": {"view_count": 3, ...}}

The checksum, BLAKE2b over everything else in the file, stands at a fixed place in front, so that it can be left out of
what it covers. Nothing in a file is executed, and only the types of `READABLE_TYPES` are ever built.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from lora3d_ns.atomic_files import write_atomically
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import DamagedFileError, InvalidDataError, StorageError
from lora3d_ns.scene_io.details import BeforeLearning, LearningDetails, SceneDetails
from lora3d_ns.types import (
    AlignedScene,
    AlignmentDiagnosis,
    Cameras,
    PairGraph,
    PairPrediction,
    PairPredictions,
    PseudoLabels,
    Scene,
    Sim3,
)

READABLE_TYPES: Mapping[str, type] = {
    readable.__name__: readable
    for readable in (
        PairGraph,
        PairPrediction,
        PairPredictions,
        Cameras,
        Sim3,
        AlignmentDiagnosis,
        AlignedScene,
        PseudoLabels,
        Scene,
        PixelAffine,
        BeforeLearning,
        LearningDetails,
        SceneDetails,
    )
}
"""The dataclasses that a file may hold, by the names they have there."""

FORMAT = "lora3d result"
FORMAT_VERSION = 1
"""Raised whenever a file of the version before cannot be read any more, or means something else."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# What every header begins with; the checksum follows, and then the rest.
_START = b'{"__metadata__":{"checksum":"'
_CHECKSUM_LENGTH = 64
_NO_CHECKSUM = "0" * _CHECKSUM_LENGTH
# The limit of safetensors itself.
_LARGEST_HEADER = 100_000_000

_MAKE_IT_ANEW = "Delete the file and run again what made it"

T = TypeVar("T")


def write_result(path: Path, value: object) -> None:
    """Writes a result, all at once or not at all. Beside the value itself, memory holds one tensor's copy at most.

    Args:
        path: The file.
        value: One of `READABLE_TYPES`, or tuples, lists and mappings of them, tensors, numbers, strings and None.

    Raises:
        StorageFullError: The disk is full.
        StorageError: The file cannot be written.
        TypeError: The value holds something else, which is a defect of the caller.
    """
    tensors = _Tensors()
    structure = json.dumps(_encoded(value, tensors), separators=(",", ":"), allow_nan=False)
    header = _header(structure, tensors)
    checksum = _begun_checksum(header)
    for tensor in tensors.in_file_order():
        checksum.update(_bytes_of(tensor))
    header = header.replace(_NO_CHECKSUM.encode(), checksum.hexdigest().encode(), 1)

    def write(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in tensors.in_file_order():
            file.write(_bytes_of(tensor))

    write_atomically(path, write)


def read_result(path: Path, expected_type: type[T]) -> T:
    """The result in a file, with all tensors on the CPU. Memory holds nothing beside it.

    Raises:
        DamagedFileError: The file is truncated or altered, was not written by `write_result`, is of another format
            version, or holds something else than `expected_type`.
        StorageError: It cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            checksum = _begun_checksum(header.raw)
            tensors = {entry.name: _read_tensor(file, entry, checksum, path) for entry in header.entries}
    except OSError as error:
        raise StorageError(
            f"it cannot be read ({error.strerror or error})", way_out="Check the path and the permissions", path=path
        ) from error
    if checksum.hexdigest() != header.checksum:
        raise _damaged(path)
    try:
        value = _decoded(json.loads(header.structure), tensors)
    # Written whole, and yet not what our types are now: of a version of this package that forgot to say so.
    except (InvalidDataError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"the file is of another version of this package ({type(error).__name__})", way_out=_MAKE_IT_ANEW, path=path
        ) from error
    if not isinstance(value, expected_type):
        raise DamagedFileError(
            f"the file holds {type(value).__name__}, not {expected_type.__name__}", way_out=_MAKE_IT_ANEW, path=path
        )
    return value


# --- structure ----------------------------------------------------------------------------------


class _Tensors:
    """The different tensors of a value, numbered as they are met."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, tensor: Tensor) -> int:
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPE_NAMES:
            raise TypeError(f"tensors of {tensor.layout}, {tensor.dtype} have no place in a file of results")
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in self._numbers:
            self._numbers[key] = len(self.found)
            self.found.append(tensor)
        return self._numbers[key]

    def numbers_in_file_order(self) -> list[int]:
        # Wide types first, so that each tensor lies at a multiple of its item's size and can be mapped.
        return sorted(range(len(self.found)), key=lambda number: (-self.found[number].element_size(), number))

    def in_file_order(self) -> list[Tensor]:
        return [self.found[number] for number in self.numbers_in_file_order()]


def _encoded(value: object, tensors: _Tensors) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        return {"tensor": tensors.number(value)}
    if type(value) in (tuple, list):
        assert isinstance(value, (tuple, list))
        return {type(value).__name__: [_encoded(entry, tensors) for entry in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[_encoded(key, tensors), _encoded(entry, tensors)] for key, entry in value.items()]}
    name = type(value).__name__
    if READABLE_TYPES.get(name) is type(value) and dataclasses.is_dataclass(value):
        fields = {field.name: _encoded(getattr(value, field.name), tensors) for field in dataclasses.fields(value)}
        return {"type": name, "fields": fields}
    raise TypeError(f"{name} has no place in a file of results")


def _decoded(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    if "type" in node:
        # Our own name, never one that the file could choose freely.
        build: Callable[..., object] = READABLE_TYPES[node["type"]]
        return build(**{name: _decoded(entry, tensors) for name, entry in node["fields"].items()})
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[f"t{content}"]
    if kind == "float":
        return float(content)
    if kind == "mapping":
        return {_decoded(key, tensors): _decoded(entry, tensors) for key, entry in content}
    return {"tuple": tuple, "list": list}[kind](_decoded(entry, tensors) for entry in content)


# --- file ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def __post_init__(self) -> None:
        numbers = (*self.shape, self.begin, self.end)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("sizes are not whole numbers")
        if self.end - self.begin != math.prod(self.shape) * self.dtype.itemsize:
            raise ValueError("a tensor's shape and its bytes contradict each other")


@dataclass(frozen=True, kw_only=True)
class _Header:
    raw: bytes
    checksum: str
    structure: str
    entries: tuple[_Entry, ...]


def _header(structure: str, tensors: _Tensors) -> bytes:
    """The header, with zeros in place of the checksum."""
    header: dict[str, object] = {
        "__metadata__": {
            "checksum": _NO_CHECKSUM,
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "structure": structure,
        }
    }
    begin = 0
    for number in tensors.numbers_in_file_order():
        tensor = tensors.found[number]
        end = begin + tensor.numel() * tensor.element_size()
        header[f"t{number}"] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    # What follows begins at a multiple of eight bytes.
    return raw + b" " * (-len(raw) % 8)


def _read_header(file: BinaryIO, path: Path) -> _Header:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not len(_START) + _CHECKSUM_LENGTH <= length <= min(size - 8, _LARGEST_HEADER):
        raise _damaged(path)
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(_START):
        raise _damaged(path)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__")
        is_ours, version = metadata["format"] == FORMAT, metadata["version"]
    # However it is damaged, JSON or its shape gives way; a hostile one may be nested too deep.
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if is_ours and version != str(FORMAT_VERSION):
        raise DamagedFileError(
            f"the file has format version {ascii(version)[:20]}, and this version of the package reads "
            f"{FORMAT_VERSION}",
            way_out=_MAKE_IT_ANEW,
            path=path,
        )
    try:
        entries = tuple(
            _Entry(
                name=name,
                dtype=_DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                begin=entry["data_offsets"][0],
                end=entry["data_offsets"][1],
            )
            for name, entry in header.items()
        )
        # One after the other and to the end of the file: so no size is larger than what is there.
        ends = (0, *(entry.end for entry in entries))
        is_whole = all(entry.begin == end for entry, end in zip(entries, ends, strict=False))
        if not is_ours or not is_whole or 8 + length + ends[-1] != size:
            raise _damaged(path)
        return _Header(raw=raw, checksum=metadata["checksum"], structure=metadata["structure"], entries=entries)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise _damaged(path) from error


def _read_tensor(file: BinaryIO, entry: _Entry, checksum: hashlib.blake2b, path: Path) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    room = _bytes_of(tensor)
    read = 0
    while read < len(room):
        more = file.readinto(room[read:])  # pyright: ignore[reportAttributeAccessIssue]  # files that are open have it
        if not more:
            raise _damaged(path)
        read += more
    checksum.update(room)
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes; its own memory if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride() != (1,):
        # A single item taken from a larger tensor keeps that one's stride and still counts as contiguous.
        flat = flat.clone(memory_format=torch.contiguous_format)
    # Without items there is no memory to look at.
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(bytearray())


def _begun_checksum(header: bytes) -> hashlib.blake2b:
    """The checksum of the header without its own place."""
    checksum = hashlib.blake2b(len(header).to_bytes(8, "little"), digest_size=_CHECKSUM_LENGTH // 2)
    checksum.update(header[: len(_START)])
    checksum.update(header[len(_START) + _CHECKSUM_LENGTH :])
    return checksum


def _damaged(path: Path) -> DamagedFileError:
    return DamagedFileError("the file is damaged or no result of ours", way_out=_MAKE_IT_ANEW, path=path)
