"""Damaged and hostile checkpoints of every kind: each loads or raises a named error, and none runs code.

`LORA3D_FUZZ_FACTOR=10` makes ten times as many.
"""

import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import TINY, hub_config, model_string, random_network, write_hub_folder, write_pth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora3d_ns.errors import Lora3dError
from lora3d_ns.network.checkpoints import load_network, save_network
from lora3d_ns.network.dust3r import Dust3r

_FACTOR = int(os.environ.get("LORA3D_FUZZ_FACTOR", "1"))


def _examples(count: int) -> settings:
    return settings(
        max_examples=count * _FACTOR,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


# --- what must not happen -----------------------------------------------------------------------

_FORBIDDEN_EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "subprocess.Popen",
    "socket.connect",
)


@dataclass
class _Watch:
    """Counts what a file made the process do while it was loaded."""

    active: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, _: object) -> None:
        if self.active and event.startswith(_FORBIDDEN_EVENTS):
            self.seen.append(event)


_WATCH = _Watch()


@dataclass
class _Samples:
    """One sound file of each kind, and a folder to put the damaged ones."""

    folder: Path
    marker: Path
    own: bytes
    hub: bytes
    hub_config: str
    pth: bytes
    pickled: bytes
    loaded: int = 0
    refused: int = 0

    def try_to_load(self, path: Path) -> None:
        """Loads a file, and lets nothing escape but a named error."""
        _WATCH.seen.clear()
        _WATCH.active = True
        try:
            network = load_network(path)
        except Lora3dError as error:
            self.refused += 1
            message, way_out = str(error), error.way_out
        else:
            message = way_out = "loaded"
            self.loaded += 1
            assert isinstance(network, Dust3r)
            assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())
        finally:
            _WATCH.active = False
        # One line that fits a terminal, whatever names the file came up with.
        assert way_out
        assert len(message) < 2000
        assert _WATCH.seen == []
        assert not self.marker.exists()

    def try_bytes(self, data: bytes, name: str) -> None:
        path = self.folder / name
        # A new file: the last one may still be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        self.try_to_load(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Samples]:
    sys.addaudithook(_WATCH)
    folder = tmp_path_factory.mktemp("fuzz")
    network = random_network()
    save_network(network, folder / "own.safetensors")
    write_hub_folder(network, folder / "hub")
    write_pth(network, folder / "network.pth")
    with zipfile.ZipFile(folder / "network.pth") as archive:
        pickled = archive.read("network/data.pkl")
    samples = _Samples(
        folder=folder / "hub",
        marker=folder / "executed",
        own=(folder / "own.safetensors").read_bytes(),
        hub=(folder / "hub" / "model.safetensors").read_bytes(),
        hub_config=(folder / "hub" / "config.json").read_text(),
        pth=(folder / "network.pth").read_bytes(),
        pickled=pickled,
    )
    yield samples
    print(f"fuzzing: {samples.loaded} loaded, {samples.refused} refused")  # noqa: T201


# --- damage to bytes ----------------------------------------------------------------------------

_POSITION = st.one_of(
    st.floats(0, 1),
    # Where the structure is: the first and the last few thousand bytes.
    st.integers(0, 3000),
    st.integers(-3000, -1),
)
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "overwrite", "insert", "delete", "truncate", "copy", "append"]),
        _POSITION,
        st.binary(min_size=1, max_size=8),
        st.integers(1, 400),
    ),
    min_size=1,
    max_size=5,
)


def _edited(data: bytes, edits: list[tuple[str, float | int, bytes, int]]) -> bytes:
    damaged = bytearray(data)
    for kind, position, content, length in edits:
        size = len(damaged)
        if size == 0:
            break
        at = int(position * (size - 1)) if isinstance(position, float) else position % size
        match kind:
            case "flip":
                damaged[at] ^= 1 << (length % 8)
            case "overwrite":
                damaged[at : at + len(content)] = content
            case "insert":
                damaged[at:at] = content
            case "delete":
                del damaged[at : at + length]
            case "truncate":
                del damaged[at:]
            case "copy":
                damaged[at:at] = damaged[size - 1 - at :][:length]
            case _:
                damaged += content
    return bytes(damaged)


@_examples(300)
@given(edits=_EDITS)
def test_damaged_safetensors(samples: _Samples, edits: Any) -> None:
    samples.try_bytes(_edited(samples.own, edits), "damaged.safetensors")


@_examples(300)
@given(edits=_EDITS)
def test_damaged_pth(samples: _Samples, edits: Any) -> None:
    samples.try_bytes(_edited(samples.pth, edits), "damaged.pth")


@_examples(100)
@given(first=st.floats(0, 1), second=st.floats(0, 1), kinds=st.permutations(["own", "hub", "pth"]))
def test_spliced_files(samples: _Samples, first: float, second: float, kinds: list[str]) -> None:
    head, tail = getattr(samples, kinds[0]), getattr(samples, kinds[1])
    spliced = head[: int(first * len(head))] + tail[int(second * len(tail)) :]
    for ending in ("safetensors", "pth"):
        samples.try_bytes(spliced, f"spliced.{ending}")


# --- lies that are well formed ------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-3, 70000), st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30])
)
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        _NUMBERS,
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ["RoPE100", "exp", "dpt", "linear", "pts3d", "F16", "F64", "I64", "BOOL", "F8_E4M3", "C64", "F4"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["dtype", "shape", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@_examples(300)
@given(data=st.data())
def test_lying_safetensors_headers(samples: _Samples, data: st.DataObject) -> None:
    (length,) = struct.unpack("<Q", samples.own[:8])
    header, body = json.loads(samples.own[8 : 8 + length]), samples.own[8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        match data.draw(st.sampled_from(["entry", "dtype", "shape", "data_offsets", "rename", "drop"])):
            case "rename":
                header[data.draw(st.text(max_size=20))] = header.pop(name)
            case "drop":
                del header[name]
            case "entry":
                header[name] = data.draw(_VALUES)
            case key if isinstance(header[name], dict):
                header[name][key] = data.draw(_VALUES)
            case _:
                pass
    text = json.dumps(header).encode()
    claimed = data.draw(st.one_of(st.just(len(text)), _NUMBERS)) % 2**64
    samples.try_bytes(struct.pack("<Q", claimed) + text + body, "lying.safetensors")


@_examples(200)
@given(data=st.data())
def test_changed_configurations(samples: _Samples, data: st.DataObject) -> None:
    values = json.loads(hub_config(TINY))
    for name in data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3)):
        values[data.draw(st.sampled_from([name, name, "head", "encoder_width", "x"]))] = data.draw(_VALUES)
    text = json.dumps(values)
    edits: Any = data.draw(st.one_of(st.just([]), _EDITS))
    (samples.folder / "config.json").write_bytes(_edited(text.encode(), edits))
    samples.try_to_load(samples.folder / "model.safetensors")
    (samples.folder / "config.json").write_text(samples.hub_config)


def _pth_with_pickle(samples: _Samples, pickled: bytes) -> bytes:
    """The sound `.pth` with another pickle, and right checksums."""
    out = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(samples.pth)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as changed,
    ):
        for record in archive.infolist():
            changed.writestr(record, pickled if record.filename.endswith("data.pkl") else archive.read(record))
    return out.getvalue()


@_examples(150)
@given(edits=_EDITS)
def test_changed_model_strings(samples: _Samples, edits: Any) -> None:
    sound = model_string(TINY).encode()
    changed = _edited(sound, edits).decode("utf-8", "replace").encode()
    # BINUNICODE carries the length before the text.
    old, new = struct.pack("<I", len(sound)) + sound, struct.pack("<I", len(changed)) + changed
    assert samples.pickled.count(old) == 1
    samples.try_bytes(_pth_with_pickle(samples, samples.pickled.replace(old, new)), "changed.pth")


@_examples(300)
@given(edits=_EDITS)
def test_damaged_pickles_in_sound_archives(samples: _Samples, edits: Any) -> None:
    samples.try_bytes(_pth_with_pickle(samples, _edited(samples.pickled, edits)), "pickle.pth")


# --- hostile pickles ----------------------------------------------------------------------------

_HARMLESS = [
    "argparse Namespace",
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch LongStorage",
    "torch BoolStorage",
    "torch Size",
]
_HOSTILE = [
    "os system",
    "posix system",
    "builtins eval",
    "builtins exec",
    "builtins getattr",
    "__builtin__ eval",
    "subprocess Popen",
    "torch.serialization load",
    "torch.jit load",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_qtensor",
    "torch.storage _load_from_bytes",
    "numpy.core.multiarray _reconstruct",
    "os mkdir",
]


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


@st.composite
def _programs(draw: st.DrawFn, marker: str) -> bytes:
    """A pickle of random opcodes: mostly sensible fragments in senseless order."""
    globals_ = draw(st.sampled_from([_HARMLESS, _HARMLESS, _HARMLESS + _HOSTILE]))
    storage = st.builds(
        lambda kind, key, numel: (
            b"("
            + _text("storage")
            + b"c"
            + kind.replace(" ", "\n").encode()
            + b"\n"
            + _text(key)
            + _text("cpu")
            + _integer(numel)
            + b"tQ"
        ),
        st.sampled_from(["torch FloatStorage", "torch LongStorage", "torch HalfStorage", "collections OrderedDict"]),
        st.sampled_from(["0", "1", "2", "99", "../0", ""]),
        st.one_of(st.integers(-2, 300), _NUMBERS),
    )
    integers = st.one_of(st.integers(-2, 10), _NUMBERS)
    shape = st.lists(integers, max_size=3).map(lambda v: b"(" + b"".join(map(_integer, v)) + b"t")
    tensor = st.builds(
        lambda storage, offset, shape, stride: (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + _integer(offset)
            + shape
            + stride
            + b"\x89ccollections\nOrderedDict\n)RtR"
        ),
        storage,
        integers,
        shape,
        shape,
    )
    call = st.builds(
        lambda name, arguments: b"c" + name.replace(" ", "\n").encode() + b"\n" + arguments,
        st.sampled_from(globals_),
        st.sampled_from(
            [b")R", b")\x81", b"", _text(f"touch {marker}") + b"\x85R", _text(f"open({marker!r},'w')") + b"\x85R"]
        ),
    )
    stack_call = st.builds(
        lambda name: _text(name.split()[0]) + _text(name.split()[1]) + b"\x93" + _text(f"touch {marker}") + b"\x85R",
        st.sampled_from(globals_),
    )
    fragment = st.one_of(
        storage,
        tensor,
        tensor,
        call,
        call,
        stack_call,
        integers.map(_integer),
        st.sampled_from(["model", "args", "touch", "enc_norm.weight", "__dict__", "__class__", "items"]).map(_text),
        # Marks, containers, appending, calls and states, the memo, constants, persistent names, extensions.
        st.sampled_from(
            [
                *(bytes([opcode]) for opcode in b"(tld)]}aesuRbN02Q.\x81\x85\x86\x87\x88\x8f\x90"),
                *(b"q\x00", b"h\x00", b"q\x01", b"h\x01"),
                *(b"\x82\x01", b"ios\nsystem\n", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00"),
            ]
        ),
        st.binary(min_size=1, max_size=3),
    )
    fragments = draw(st.lists(fragment, max_size=14))
    if draw(st.booleans()):
        # A call that would succeed, so that only refusing it keeps it from being made.
        function, argument = draw(
            st.sampled_from(
                [
                    ("os\nsystem", f"touch '{marker}'"),
                    ("posix\nsystem", f"touch '{marker}'"),
                    ("builtins\neval", f"open({marker!r}, 'w').close()"),
                    ("__builtin__\nexec", f"open({marker!r}, 'w').close()"),
                    ("os\nmkdir", marker),
                ]
            )
        )
        attack = draw(
            st.sampled_from(
                [
                    b"c" + function.encode() + b"\n" + _text(argument) + b"\x85R",
                    b"(" + _text(argument) + b"i" + function.encode() + b"\n",
                    b"".join(map(_text, function.split("\n"))) + b"\x93" + _text(argument) + b"\x85R",
                ]
            )
        )
        fragments.insert(draw(st.integers(0, len(fragments))), attack)
    body = b"".join(fragments)
    # Often as an entry of what would otherwise be a checkpoint.
    if draw(st.booleans()):
        namespace = b"cargparse\nNamespace\n)\x81}" + _text("model") + _text(model_string(TINY)) + b"sb"
        body = b"}(" + _text("args") + namespace + _text("model") + b"}" + _text("w") + body + b"su"
    return draw(st.sampled_from([b"\x80\x02", b"\x80\x02", b"\x80\x04", b""])) + body + b"."


@_examples(400)
@given(data=st.data())
def test_hostile_pickles(samples: _Samples, data: st.DataObject) -> None:
    program = data.draw(_programs(str(samples.marker)))
    samples.try_bytes(_pth_with_pickle(samples, program), "hostile.pth")


@_examples(100)
@given(data=st.data())
def test_hostile_pickles_without_an_archive(samples: _Samples, data: st.DataObject) -> None:
    programs = [data.draw(_programs(str(samples.marker))) for _ in range(data.draw(st.integers(1, 3)))]
    magic = data.draw(st.sampled_from([b"", pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(1001, 2)]))
    samples.try_bytes(magic + b"".join(programs), "bare.pth")


@_examples(150)
@given(data=st.data())
def test_hostile_pickles_that_torch_alone_has_to_stop(samples: _Samples, data: st.DataObject) -> None:
    # The second line of defence: the same with the scan switched off.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora3d_ns.network.checkpoint_files.refuse_unsafe_pickle", lambda *_: None)
        program = data.draw(_programs(str(samples.marker)))
        samples.try_bytes(_pth_with_pickle(samples, program), "second.pth")
