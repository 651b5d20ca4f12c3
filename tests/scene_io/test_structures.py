"""Round trips bit for bit; nothing that is damaged, foreign or of another version is taken for a result."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from alignment.aligned_rooms import OFF, noisy, room
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from stored_samples import assert_same, finished_scene, samples

import lora3d_ns.scene_io.structures as structures
from lora3d_ns.alignment.align import align
from lora3d_ns.benchmark_record import PeakMemory
from lora3d_ns.errors import DamagedFileError, StorageError
from lora3d_ns.scene_io.structures import READABLE_TYPES, read_result, write_result
from lora3d_ns.types import AlignedScene, Cameras, PairGraph, PairPredictions, Scene, Sim3


def test_there_is_a_sample_of_every_type() -> None:
    assert set(samples()) == set(READABLE_TYPES)


@pytest.mark.parametrize("name", READABLE_TYPES)
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    path = tmp_path / "deep" / "result"
    value = samples()[name]
    write_result(path, value)
    assert_same(read_result(path, READABLE_TYPES[name]), value)
    before = path.read_bytes()
    write_result(path, value)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["result"]


def test_a_real_alignment_comes_back_bit_for_bit(tmp_path: Path) -> None:
    predictions, _ = noisy(3)
    write_result(tmp_path / "predictions", predictions)
    assert_same(read_result(tmp_path / "predictions", PairPredictions), predictions)
    aligned = align(room(3).views, predictions, OFF)
    write_result(tmp_path / "aligned", aligned)
    assert_same(read_result(tmp_path / "aligned", AlignedScene), aligned)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=[])),
    st.builds(
        lambda dtype, shape: torch.randint(-100, 100, shape).to(dtype),
        st.sampled_from(list(structures._DTYPES.values())),
        st.lists(st.integers(0, 3), max_size=4),
    ),
)
keys = st.one_of(st.none(), st.integers(), st.text(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner)),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_whatever_is_made_of_these_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "whatever"
    write_result(path, value)
    assert_same(read_result(path, object), value)


def test_a_tensor_that_occurs_twice_is_stored_once(tmp_path: Path) -> None:
    tensor = torch.rand(1000)
    write_result(tmp_path / "shared", (tensor, [tensor.view(1000)], tensor[:500], tensor[::2]))
    assert (tmp_path / "shared").stat().st_size < 8000 + 1000
    first, (second,), half, strided = read_result(tmp_path / "shared", tuple)
    assert first is second
    assert_same([first, half, strided], [tensor, tensor[:500], tensor[::2].contiguous()])


def test_tensors_that_need_a_copy(tmp_path: Path) -> None:
    wanted = (
        torch.rand(3, 4).mT,
        torch.rand(1, 3, 3)[:, 0, 0],
        torch.rand(1).expand(5, 2),
        torch.rand(3, requires_grad=True),
        torch.tensor(True),
        torch.rand(0, 3),
    )
    write_result(tmp_path / "file", wanted)
    found = read_result(tmp_path / "file", tuple)
    assert_same(found, wanted)
    assert not any(tensor.requires_grad for tensor in found)


def test_the_file_is_a_safetensors_file(tmp_path: Path) -> None:
    """Readable, and mappable, by the library itself."""
    tensors = (
        torch.rand(3).half(),
        torch.rand(2, dtype=torch.float64),
        torch.tensor([True]),
        torch.arange(3, dtype=torch.int16),
    )
    write_result(tmp_path / "file", {"some": tensors})
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert sorted(file.keys()) == ["t0", "t1", "t2", "t3"]
        for number, tensor in enumerate(tensors):
            assert_same(file.get_tensor(f"t{number}"), tensor)
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("lora3d result", "1")
    header_bytes = int.from_bytes((tmp_path / "file").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads((tmp_path / "file").read_bytes()[8 : 8 + header_bytes])
    for number, tensor in enumerate(tensors):
        assert header[f"t{number}"]["data_offsets"][0] % tensor.element_size() == 0


@pytest.mark.parametrize(
    "value", [{1, 2}, Path("x"), b"x", object(), 1j, PairGraph, torch.rand(2).to_sparse(), torch.rand(2) + 1j]
)
def test_what_has_no_place_in_a_file_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="no place"):
        write_result(tmp_path / "file", [value])
    assert list(tmp_path.iterdir()) == []


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture(name="written", scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "file"
    write_result(path, samples()["AlignedScene"])
    return path.read_bytes()


def assert_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as caught:
        read_result(path, object)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert "Delete the file" in caught.value.way_out


def test_every_flipped_bit_is_found(tmp_path: Path, written: bytes) -> None:
    """All bits of the first bytes, of the end of the header and of what surrounds it; some hundred of the rest."""
    dice = random.Random(0)
    header_end = 8 + int.from_bytes(written[:8], "little")
    places = {*range(120), *range(header_end - 10, header_end + 10), *range(len(written) - 4, len(written))}
    places |= {dice.randrange(len(written)) for _ in range(50)} | {dice.randrange(header_end) for _ in range(50)}
    for place in sorted(places):
        for bit in range(8):
            damaged = bytearray(written)
            damaged[place] ^= 1 << bit
            assert_damaged(tmp_path / "file", bytes(damaged))


def test_every_truncation_is_found(tmp_path: Path, written: bytes) -> None:
    dice = random.Random(1)
    lengths = {*range(150), *(dice.randrange(len(written)) for _ in range(150)), len(written) - 1}
    for length in sorted(lengths):
        assert_damaged(tmp_path / "file", written[:length])
    for more in (b"\0", b" " * 8, written):
        assert_damaged(tmp_path / "file", written + more)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_other_damage_is_found(tmp_path_factory: pytest.TempPathFactory, written: bytes, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(written)))
    end = data.draw(st.integers(begin, min(len(written), begin + 200)))
    put = data.draw(st.one_of(st.binary(max_size=200), st.just(bytes(end - begin))))
    damaged = written[:begin] + put + written[end:]
    if damaged != written:
        assert_damaged(tmp_path_factory.getbasetemp() / "damaged", damaged)


def altered(content: bytes, change: Callable[[dict], None]) -> bytes:
    """The file with another header, and a checksum that fits."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    header["__metadata__"]["checksum"] = structures._NO_CHECKSUM
    raw = json.dumps(header, separators=(",", ":")).encode()
    checksum = structures._begun_checksum(raw)
    checksum.update(content[8 + length :])
    raw = raw.replace(structures._NO_CHECKSUM.encode(), checksum.hexdigest().encode(), 1)
    return len(raw).to_bytes(8, "little") + raw + content[8 + length :]


def structure(text: str) -> Callable[[dict], None]:
    return lambda header: header["__metadata__"].update(structure=text)


def test_another_version_is_called_one(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "file").write_bytes(altered(written, lambda header: header["__metadata__"].update(version="1")))
    assert isinstance(read_result(tmp_path / "file", AlignedScene), AlignedScene)
    (tmp_path / "file").write_bytes(altered(written, lambda header: header["__metadata__"].update(version="2")))
    with pytest.raises(DamagedFileError, match="format version '2', and this version of the package reads 1"):
        read_result(tmp_path / "file", AlignedScene)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["__metadata__"].update(format="something else"),
        lambda header: header["__metadata__"].pop("structure"),
        lambda header: header["__metadata__"].update(structure=["no text"]),
        structure("[" * 100_000),
        structure('{"type": "Path", "fields": {}}'),
        structure('{"type": "PairGraph", "fields": {"view_count": 2}}'),
        structure('{"type": "PairGraph", "fields": {"view_count": 2, "edges": {"tuple": [{"tuple": [0, 7]}]}}}'),
        structure('{"type": "PairGraph", "fields": {"view_count": 2, "edges": {"tuple": []}, "more": 1}}'),
        structure('{"type": ["PairGraph"], "fields": {}}'),
        structure('{"tensor": 10000}'),
        structure('{"frozenset": []}'),
        structure('{"mapping": [[{"list": []}, 1]]}'),
        structure("{}"),
        structure("nonsense"),
        lambda header: header["t0"].update(shape=[2**40, 2**40]),
        lambda header: header["t0"].update(shape=[-1, -96]),
        lambda header: header["t0"].update(shape="x"),
        lambda header: header["t0"].update(dtype="F128"),
        lambda header: header["t0"].update(data_offsets=[0]),
        lambda header: header.update(t0=None),
    ],
)
def test_files_that_only_look_like_ours(tmp_path: Path, written: bytes, change: Callable[[dict], None]) -> None:
    assert_damaged(tmp_path / "file", altered(written, change))


def test_another_type_than_expected(tmp_path: Path) -> None:
    write_result(tmp_path / "file", samples()["PairGraph"])
    with pytest.raises(DamagedFileError, match="holds PairGraph, not Cameras"):
        read_result(tmp_path / "file", Cameras)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file") as caught:
        read_result(tmp_path / "missing", Scene)
    assert not isinstance(caught.value, DamagedFileError)
    with pytest.raises(StorageError, match="directory"):
        read_result(tmp_path, Scene)


# --- kills, memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "scene"])
def test_kills_at_random_moments_leave_the_old_or_the_new(tmp_path: Path, kind: str) -> None:
    program = [sys.executable, str(Path(__file__).with_name("kills.py")), kind, str(tmp_path)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_memory_holds_one_tensors_copy_at_most(tmp_path: Path) -> None:
    """64 tensors of 1 MiB that all need a copy to be written: measured 0.9 MiB."""
    mebibyte = 2**20
    values = [torch.rand(512, 512).mT for _ in range(64)]
    write_result(tmp_path / "warm", values[:2])
    with PeakMemory(torch.device("cpu")) as memory:
        write_result(tmp_path / "file", values)
    assert memory.peak_bytes < 16 * mebibyte
    with PeakMemory(torch.device("cpu")) as memory:
        found = read_result(tmp_path / "file", list)
    assert memory.peak_bytes < (64 + 16) * mebibyte
    assert_same(found[63], values[63])


def test_no_file_names_a_machine_or_a_path(tmp_path: Path) -> None:
    write_result(tmp_path / "file", finished_scene())
    assert not re.search(rb"/(tmp|home|root|work)/", (tmp_path / "file").read_bytes())


def test_similarities_without_a_batch(tmp_path: Path) -> None:
    one = Sim3(scale=torch.tensor(2.0), rotation=torch.eye(3), translation=torch.zeros(3))
    write_result(tmp_path / "file", one)
    assert_same(read_result(tmp_path / "file", Sim3), one)
