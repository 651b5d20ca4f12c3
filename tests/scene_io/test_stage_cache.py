import dataclasses
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_samples import assert_same, samples

from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.errors import StorageError, StorageFullError
from lora3d_ns.images import PhotoSettings
from lora3d_ns.predict import PredictionSettings
from lora3d_ns.scene_io.stage_cache import StageCache, fingerprint
from lora3d_ns.types import Cameras, PairGraph, Views

KEY = fingerprint("a key")
FILE = f"stage-{KEY}.safetensors"
GRAPH = PairGraph(view_count=2, edges=((0, 1), (1, 0)))


# --- fingerprint --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    number: float = 1.0
    show_progress: bool = True
    source_paths: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SettingsToo:
    number: float = 1.0


def test_fingerprints_stay_what_they_are() -> None:
    """If this fails, every folder of intermediate results is worthless: raise `_FINGERPRINT_VERSION` on purpose."""
    fixed = (
        Settings(),
        GRAPH,
        torch.arange(6, dtype=torch.float16).reshape(2, 3),
        {"b": None, "a": [True, -1, 0.1, "ü"]},
        {3, 1, 2},
        b"\0",
        PurePosixPath("there/file"),
    )
    assert fingerprint(*fixed) == "5fa0f8fe6f101231e0bf86989303173e"
    assert fingerprint() == "8fe808e6d70c67ef2989a8eadb954c3b"


def test_what_does_not_count() -> None:
    assert fingerprint(Settings()) == fingerprint(Settings(show_progress=False, source_paths=(Path("x"),)))
    assert fingerprint(Path("here/photo.jpg")) == fingerprint(Path("there/photo.jpg"))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a", "b", "c", "d"}) == fingerprint(frozenset("dcba"))
    tensor = torch.rand(4, 3)
    assert fingerprint(tensor) == fingerprint(tensor.clone().requires_grad_()) == fingerprint(tensor.mT.clone().mT)
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_what_counts() -> None:
    ones = torch.ones(2, 3)
    different = [
        (),
        (None,),
        ((),),
        ("",),
        (b"",),
        (0,),
        (0.0,),
        (-0.0,),
        (False,),
        (1,),
        (1.0,),
        (True,),
        ("1",),
        (b"1",),
        (Path("1"),),
        ((1,),),
        ({1},),
        ({1: None},),
        (1, 2),
        (2, 1),
        ((1, 2),),
        ((1,), 2),
        (1, (2,)),
        ({1: 2, 3: 4},),
        ({1: 4, 3: 2},),
        ({1, 2},),
        ("int 1",),
        ("ab", "c"),
        ("a", "bc"),
        (float("nan"),),
        (float("inf"),),
        (ones,),
        (ones.mT,),
        (ones.double(),),
        (ones.half(),),
        (ones.to(torch.int32),),
        (ones.bool(),),
        (-ones,),
        (torch.ones(6),),
        (torch.ones(0, 3),),
        (torch.ones(0, 2),),
        (torch.ones(()),),
        (Settings(),),
        (Settings(number=2.0),),
        (SettingsToo(),),
        (GRAPH,),
        (PairGraph(view_count=3, edges=GRAPH.edges),),
        (PairGraph(view_count=2, edges=((0, 1),)),),
    ]
    fingerprints = [fingerprint(*values) for values in different]
    assert len(set(fingerprints)) == len(different)
    assert all(len(found) == 32 and int(found, 16) >= 0 for found in fingerprints)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.tuples()),
    lambda inner: st.one_of(st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(plain, plain)
def test_different_values_have_different_fingerprints(first: object, second: object) -> None:
    # repr tells 1 from True from 1.0, and 0.0 from -0.0, as equality does not; it keeps the order of a dict.
    def sorted_repr(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(sorted(f"{key!r}: {sorted_repr(entry)}" for key, entry in value.items())) + "}"
        if isinstance(value, tuple):
            return "(" + ", ".join(map(sorted_repr, value)) + ")"
        return repr(value)

    assert fingerprint(first) == fingerprint(first)
    if sorted_repr(first) != sorted_repr(second):
        assert fingerprint(first) != fingerprint(second)
        assert fingerprint(first, second) != fingerprint(second, first)


def test_a_single_item_of_a_larger_tensor_has_the_fingerprint_of_its_value() -> None:
    matrices = torch.arange(9.0).reshape(1, 3, 3)
    assert fingerprint(matrices[:, 1, 1]) == fingerprint(torch.tensor([4.0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 23), st.integers(0, 7))
def test_every_bit_of_a_tensor_counts(place: int, bit: int) -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    changed = tensor.clone()
    changed.view(torch.uint8)[place] ^= 1 << bit
    assert fingerprint(tensor) != fingerprint(changed)


def test_photos_and_all_settings_have_fingerprints(make_views: Callable[..., Views], tmp_path: Path) -> None:
    views = make_views([(8, 12), (6, 4)])
    found = fingerprint(views, PhotoSettings(), PredictionSettings(), AlignmentSettings(), *samples().values())
    moved = dataclasses.replace(views, source_paths=(tmp_path / "a", None))
    assert fingerprint(moved) == fingerprint(views)
    assert fingerprint(make_views([(8, 12), (6, 4)], seed=1)) != fingerprint(views)
    quiet = dataclasses.replace(AlignmentSettings(), show_progress=False)
    assert fingerprint(quiet) == fingerprint(AlignmentSettings())
    assert fingerprint(dataclasses.replace(AlignmentSettings(), mu=0.02)) != fingerprint(AlignmentSettings())
    program = """
import sys
from lora3d_ns.scene_io.stage_cache import fingerprint
print(fingerprint({"b", "a", "c"}, {"x": 1, "y": 2}))
"""
    # Python's own hashes, and with them the order of sets, are others in each process.
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {fingerprint({"b", "a", "c"}, {"x": 1, "y": 2}).encode() + b"\n"}
    assert found != fingerprint(views)


@pytest.mark.parametrize(
    "value", [object(), int, print, 1j, torch.nn.Linear(1, 1), Settings, {"a": object()}, range(3)]
)
def test_other_values_are_a_defect(value: object) -> None:
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprint(value)


# --- cache --------------------------------------------------------------------------------------


def counting(value: object) -> tuple[Callable[[], object], list[int]]:
    calls: list[int] = []

    def compute() -> object:
        calls.append(1)
        return value

    return compute, calls


def not_needed() -> PairGraph:
    pytest.fail("this has been computed already")


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    for name, value in samples().items():
        compute, calls = counting(value)
        cache = StageCache(tmp_path / "deep" / "cache")
        assert cache.result("stage", fingerprint(name), type(value), compute) is value
        assert cache.reused == []
        assert_same(cache.result("stage", fingerprint(name), type(value), compute), value)
        assert cache.reused == ["stage"]
        assert_same(
            StageCache(tmp_path / "deep" / "cache").result("stage", fingerprint(name), type(value), compute), value
        )
        assert calls == [1]


def test_other_stages_and_keys_are_other_results(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    for index, (stage, key) in enumerate([("one", "a"), ("two", "a"), ("one", "b")]):
        assert cache.result(stage, key, int, lambda index=index: index) == index
    assert [cache.result(*name, int, not_needed) for name in (("one", "a"), ("two", "a"), ("one", "b"))] == [0, 1, 2]
    assert cache.reused == ["one", "two", "one"]


def test_no_cache_computes_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for cache in (StageCache.none(), StageCache(None)):
        compute, calls = counting(GRAPH)
        for _ in range(2):
            assert cache.result("stage", KEY, PairGraph, compute) is GRAPH
        assert calls == [1, 1]
        assert cache.root is None
        assert cache.folder("stage", KEY) is None
        cache.clear_partial("stage", KEY)
        assert cache.reused == []
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_none(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    compute, calls = counting(None)
    for _ in range(2):
        assert cache.result("stage", KEY, type(None), compute) is None
    assert calls == [1]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "other type", "foreign"])
def test_a_damaged_result_is_computed_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache, path = StageCache(tmp_path), tmp_path / FILE
    cache.result("stage", KEY, PairGraph, lambda: GRAPH)
    content = path.read_bytes()
    if damage == "other type":
        path.unlink()
        cache.result("stage", KEY, Cameras, lambda: samples()["Cameras"])
    else:
        flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
        broken = {"flipped": flipped, "truncated": content[:-1], "empty": b"", "foreign": b"{" * 200}
        path.write_bytes(broken[damage])
    compute, calls = counting(GRAPH)
    with caplog.at_level(logging.WARNING):
        assert cache.result("stage", KEY, PairGraph, compute) is GRAPH
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "computed anew" in record.getMessage()
    assert cache.reused == []
    assert_same(cache.result("stage", KEY, PairGraph, compute), GRAPH)
    assert calls == [1]
    assert path.read_bytes() == content


def test_a_stage_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)

    def fail() -> PairGraph:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.result("stage", KEY, PairGraph, fail)
    assert not (tmp_path / FILE).exists()
    assert cache.result("stage", KEY, PairGraph, lambda: GRAPH) is GRAPH


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StageCache(tmp_path)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match="stage stage") as caught:
            cache.result("stage", KEY, PairGraph, lambda: GRAPH)
    assert "this folder of intermediate results can be deleted" in caught.value.way_out
    assert caught.value.path == tmp_path
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
    assert cache.result("stage", KEY, PairGraph, lambda: GRAPH) is GRAPH


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    cache = StageCache(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be"):
        cache.result("stage", KEY, PairGraph, not_needed)
    with pytest.raises(StorageError, match="cannot be used"):
        cache.folder("stage", KEY)

    # What is there already is read from a folder that cannot be written to.
    StageCache(tmp_path).result("stage", KEY, PairGraph, lambda: GRAPH)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", read_only)
    assert_same(StageCache(tmp_path).result("stage", KEY, PairGraph, not_needed), GRAPH)
    with pytest.raises(StorageError, match="Read-only"):
        StageCache(tmp_path).result("other", KEY, PairGraph, not_needed)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    assert StageCache(tmp_path).result("stage", KEY, PairGraph, lambda: GRAPH) is GRAPH
    assert "cannot be locked" in caplog.text
    assert_same(StageCache(tmp_path).result("stage", KEY, PairGraph, not_needed), GRAPH)


@pytest.mark.parametrize(
    ("stage", "key"), [("", "a"), ("Stage", "a"), ("../a", "a"), ("a", ""), ("a", "../b"), ("a", "b/c")]
)
def test_names_stay_in_the_folder(tmp_path: Path, stage: str, key: str) -> None:
    for cache in (StageCache(tmp_path), StageCache.none()):
        with pytest.raises(ValueError, match="do not name a result"):
            cache.result(stage, key, PairGraph, not_needed)
        with pytest.raises(ValueError, match="do not name a result"):
            cache.clear_partial(stage, key)


def test_folders_of_stages(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    folder = cache.folder("stage", KEY)
    assert folder is not None
    (folder / "checkpoint").write_text("half way")
    assert cache.folder("stage", KEY) == folder
    assert (folder / "checkpoint").exists()
    cache.result("stage", KEY, PairGraph, lambda: GRAPH)
    cache.clear_partial("stage", KEY)
    cache.clear_partial("stage", KEY)
    assert not folder.exists()
    assert_same(cache.result("stage", KEY, PairGraph, not_needed), GRAPH)


# --- several at once ----------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from pathlib import Path
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.types import PairGraph
folder = Path(sys.argv[1])
def compute():
    with (folder / "count").open("a") as file:
        file.write("x")
    time.sleep(float(sys.argv[2]))
    return PairGraph(view_count=2, edges=((0, 1),))
cache = StageCache(folder / "cache")
(folder / f"ready-{os.getpid()}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
graph = cache.result("stage", "key", PairGraph, compute)
assert graph.edges == ((0, 1),)
print(cache.reused)
"""


def started(folder: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 60.0
        time.sleep(0.002)


def test_two_processes_at_once_compute_once(tmp_path: Path) -> None:
    processes = [started(tmp_path, 1.0) for _ in range(2)]
    until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    (tmp_path / "go").touch()
    outputs = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["['stage']", "[]"]
    assert (tmp_path / "count").read_text() == "x"


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    first = started(tmp_path, 600.0)
    until((tmp_path / "count").exists)
    second = started(tmp_path, 0.0)
    until((tmp_path / f"ready-{second.pid}").exists)
    time.sleep(0.3)
    assert second.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=60)[0].strip() == "[]"
    assert second.returncode == 0
    assert (tmp_path / "count").read_text() == "xx"


def test_two_threads_at_once_compute_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = StageCache(tmp_path)
    begun, go_on, results, calls = threading.Event(), threading.Event(), [], []

    def compute() -> PairGraph:
        calls.append(1)
        begun.set()
        assert go_on.wait(30.0)
        return GRAPH

    def run() -> None:
        results.append(cache.result("stage", KEY, PairGraph, compute))

    threads = [threading.Thread(target=run) for _ in range(2)]
    with caplog.at_level(logging.INFO):
        threads[0].start()
        assert begun.wait(30.0)
        threads[1].start()
        until(lambda: "waiting for another" in caplog.text)
        # Another result is not held up.
        assert cache.result("other", KEY, PairGraph, lambda: GRAPH) is GRAPH
        go_on.set()
        for thread in threads:
            thread.join(30.0)
    assert calls == [1]
    assert len(results) == 2
    assert cache.reused == ["stage"]
