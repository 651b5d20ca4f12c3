import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors import SafetensorError

from lora3d_ns.atomic_files import (
    remove_leftovers,
    replace_file,
    replace_folder,
    settle_folder,
    write_atomically,
    write_bytes_atomically,
    write_text_atomically,
)
from lora3d_ns.errors import SettingsError, StorageError, StorageFullError


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def left_behind(folder: Path, write: str, moment: str) -> None:
    """Runs a writer in another process, which the statement `moment` arranges to `die()` somewhere."""
    program = f"""
import os, signal, sys
from pathlib import Path
from lora3d_ns.atomic_files import *
folder = Path({str(folder)!r})
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{moment}
{write}
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr


# --- one file -----------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    write_bytes_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: [file.write(b"new"), file.write(b" and longer")])
    assert path.read_bytes() == b"new and longer"
    write_text_atomically(path, "Größe\r\nß\n")
    assert path.read_bytes() == "Größe\r\nß\n".encode()
    assert listing(path.parent) == ["file.bin"]


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    write_bytes_atomically(tmp_path / "a", b"")
    with replace_file(tmp_path / "b") as temporary:
        # Libraries that make a file of their own under the name.
        temporary.unlink()
        temporary.touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == wanted
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == wanted


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_symbolic_link_keeps_pointing_where_it_does(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there/file")
    write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new"

    (tmp_path / "folder-link").symlink_to(tmp_path / "there")
    with replace_folder(tmp_path / "folder-link") as new:
        (new / "other").touch()
    assert (tmp_path / "folder-link").is_symlink()
    assert listing(tmp_path / "there") == ["other"]
    assert listing(tmp_path) == ["folder-link", "link", "there"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", ["write", "fsync", "touch", "replace"])
def test_a_full_disk_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of ")
        if moment == "write":
            failing(number)()

    with monkeypatch.context() as patch:
        if moment == "fsync":
            patch.setattr(os, "fsync", failing(number))
        elif moment != "write":
            patch.setattr(Path, moment, failing(number))
        with pytest.raises(StorageFullError, match="full") as caught:
            write_atomically(path, write)
    assert caught.value.path == path
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file"]


def test_a_full_disk_is_seen_behind_the_errors_of_libraries(tmp_path: Path) -> None:
    def torch_on_a_full_disk(_: BinaryIO) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            torch.save({"a": torch.zeros(1000)}, full)

    if Path("/dev/full").exists():
        with pytest.raises(StorageFullError):
            write_atomically(tmp_path / "file", torch_on_a_full_disk)
    with pytest.raises(StorageFullError), replace_file(tmp_path / "file"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert listing(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """On a file system of 128 KiB, where this machine lets a user mount one."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=128k none "$0" && exec "$@"', str(tmp_path)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("no file system may be mounted here")
    program = f"""
from pathlib import Path
from lora3d_ns.atomic_files import *
from lora3d_ns.errors import StorageFullError
folder = Path({str(tmp_path)!r})
write_bytes_atomically(folder / "file", b"old" * 1000)
with replace_folder(folder / "results") as new:
    (new / "one").write_bytes(b"old" * 1000)
def names(): return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
before = names()
try:
    write_bytes_atomically(folder / "file", b"new" * 100_000)
except StorageFullError:
    pass
else:
    raise SystemExit("there was room")
try:
    with replace_folder(folder / "results") as new:
        for index in range(100):
            (new / str(index)).write_bytes(b"new" * 1000)
except StorageFullError:
    pass
else:
    raise SystemExit("there was room")
assert names() == before, names()
assert (folder / "file").read_bytes() == (folder / "results/one").read_bytes() == b"old" * 1000
write_bytes_atomically(folder / "file", b"new" * 1000)
"""
    result = subprocess.run([*mount, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_quota_of_the_process(tmp_path: Path) -> None:
    """A write that the system itself cuts off in the middle, which needs no rights to provoke."""
    program = f"""
import resource, signal
from pathlib import Path
from lora3d_ns.atomic_files import *
from lora3d_ns.errors import StorageError
path = Path({str(tmp_path / "file")!r})
write_bytes_atomically(path, b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_bytes_atomically(path, b"new" * 10_000)
except StorageError as error:
    assert "too large" in str(error), error
else:
    raise SystemExit("there was room")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert listing(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_places_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_bytes_atomically(tmp_path / "file" / "below", b"")
    with pytest.raises(StorageError, match="directory"):
        write_bytes_atomically(tmp_path / "folder", b"")
    with pytest.raises(StorageError, match="Not a directory"), replace_folder(tmp_path / "file"):
        pytest.fail("the block must not run")
    for number in (errno.EROFS, errno.EACCES):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "touch", failing(number))
            patch.setattr(Path, "mkdir", failing(number))
            with pytest.raises(StorageError, match=os.strerror(number)) as caught:
                write_bytes_atomically(tmp_path / "file", b"")
            assert not isinstance(caught.value, StorageFullError)
            with pytest.raises(StorageError, match=os.strerror(number)), replace_folder(tmp_path / "folder"):
                pytest.fail("the block must not run")
    assert listing(tmp_path) == ["file", "folder"]
    assert listing(tmp_path / "folder") == ["kept"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a defect"), SettingsError("x", way_out="y")])
def test_other_errors_pass_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    def write_file() -> None:
        with replace_file(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of ")
            raise error

    def write_folder() -> None:
        with replace_folder(tmp_path / "folder") as new:
            (new / "one").touch()
            raise error

    for write in (write_file, write_folder):
        with pytest.raises(type(error)) as caught:
            write()
        assert caught.value is error
        assert listing(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had in a test; the order of what guards against it can."""
    events: list[str] = []

    def watched(owner: object, name: str, told: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def watch(*arguments: object, **others: object) -> object:
            events.append(told(*arguments))
            return real(*arguments, **others)

        monkeypatch.setattr(owner, name, watch)

    watched(os, "fsync", lambda handle: f"flush {'folder' if stat.S_ISDIR(os.fstat(handle).st_mode) else 'file'}")
    watched(Path, "replace", lambda *_: "rename")
    watched(Path, "rename", lambda *_: "rename")
    write_bytes_atomically(tmp_path / "file", b"x")
    assert events == ["flush file", "rename", "flush folder"]

    events.clear()
    with replace_folder(tmp_path / "folder") as new:
        (new / "deep").mkdir()
        (new / "deep/one").touch()
        (new / "two").touch()
    assert sorted(events[:4]) == ["flush file", "flush file", "flush folder", "flush folder"]
    assert events[4:] == ["rename", "flush folder"]


# --- a folder -----------------------------------------------------------------------------------


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "results"
    for content in ("old", "new"):
        with replace_folder(folder) as new:
            (new / "inner").mkdir()
            (new / "inner" / content).write_text(content)
            if content == "new":
                assert listing(folder / "inner") == ["old"]
        assert listing(folder / "inner") == [content]
        assert listing(folder.parent) == ["results"]


@pytest.mark.parametrize("moment", ["fsync", "rename"])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_full_disk_leaves_the_old_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, failures: int
) -> None:
    """Whichever of the calls fails: with `rename`, the first sets the old one aside, the second puts the new one."""
    folder = tmp_path / "results"
    with replace_folder(folder) as new:
        (new / "old").touch()
    owner = os if moment == "fsync" else Path
    real, calls = getattr(owner, moment), 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return failing(errno.ENOSPC)() if calls == failures else real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, fail)
        with pytest.raises(StorageFullError) as caught, replace_folder(folder) as new:
            (new / "new").touch()
    assert calls >= failures
    assert caught.value.path == folder
    assert listing(folder) == ["old"]
    assert listing(tmp_path) == ["results"]


def test_an_error_inside_names_the_place_that_the_user_knows(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError) as caught, replace_folder(tmp_path / "results") as new:
        write_atomically(new / "deep/file", failing(errno.ENOSPC))
    assert caught.value.path == tmp_path / "results/deep/file"
    assert ".partial" not in str(caught.value)
    assert listing(tmp_path) == []
    elsewhere = StorageError("x", way_out="y", path=tmp_path)
    with pytest.raises(StorageError) as caught, replace_folder(tmp_path / "results"):
        raise elsewhere
    assert caught.value is elsewhere


_DIE_BEFORE_THE_NEW_ONE_IS_THERE = "Path.rename = lambda self, other, real=Path.rename: real(self, other) and die()"
_DIE_BEFORE_THE_OLD_ONE_IS_GONE = "import shutil; shutil.rmtree = die"


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_between_the_two_renames(tmp_path: Path, again: bool) -> None:
    folder = tmp_path / "results"
    with replace_folder(folder) as new:
        (new / "old").touch()
    write = "with replace_folder(folder) as new: (new / 'new').touch()"
    left_behind(folder, write, _DIE_BEFORE_THE_NEW_ONE_IS_THERE)
    assert not folder.exists()
    if again:
        with replace_folder(folder) as new:
            assert listing(folder) == ["old"]
            (new / "newer").touch()
        assert listing(folder) == ["newer"]
    else:
        settle_folder(folder)
        settle_folder(folder)
        assert listing(folder) == ["old"]
    assert len(remove_leftovers(tmp_path)) == 1
    assert listing(tmp_path) == ["results"]


def test_a_kill_before_the_old_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with replace_folder(folder) as new:
        (new / "old").touch()
    write = "with replace_folder(folder) as new: (new / 'new').touch()"
    left_behind(folder, write, _DIE_BEFORE_THE_OLD_ONE_IS_GONE)
    settle_folder(folder)
    assert listing(folder) == ["new"]
    assert len(remove_leftovers(tmp_path)) == 1
    assert listing(tmp_path) == ["results"]
    # The content set aside by a process that died at its last rename is as outdated once the new one is there.
    (tmp_path / ".results.lora3d-old").mkdir()
    settle_folder(folder)
    assert listing(tmp_path) == ["results"]
    assert listing(folder) == ["new"]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Files and folders hold one generation each, whole, after every kill."""
    program = f"""
import sys
from pathlib import Path
from lora3d_ns.atomic_files import *
folder = Path({str(tmp_path)!r})
generation = int(sys.argv[1])
while True:
    generation += 1
    write_bytes_atomically(folder / "file", b"%09d" % generation * 20_000)
    with replace_folder(folder / "results") as new:
        for name in "abcde":
            (new / name).write_bytes(b"%09d" % generation * 100)
    print(generation, flush=True)
"""
    dice = random.Random(0)
    generation = 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(generation)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        # It has begun; then any moment.
        process.stdout.readline()
        time.sleep(dice.uniform(0.0, 0.02))
        process.kill()
        _, errors = process.communicate()
        assert not errors
        content = (tmp_path / "file").read_bytes()
        assert content == content[:9] * 20_000
        settle_folder(tmp_path / "results")
        assert listing(tmp_path / "results") == list("abcde")
        parts = {(tmp_path / "results" / name).read_bytes() for name in "abcde"}
        assert len(parts) == 1
        assert int(content[:9]) - int(parts.pop()[:9]) in (0, 1)
        assert int(content[:9]) > generation
        generation = int(content[:9])
        remove_leftovers(tmp_path)
        assert listing(tmp_path) == ["file", "results"]


def test_a_reader_does_not_take_a_living_writer_for_a_dead_one(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    program = f"""
from pathlib import Path
from lora3d_ns.atomic_files import *
for generation in range(150):
    with replace_folder(Path({str(folder)!r})) as new:
        (new / "one").write_text(str(generation))
"""
    with replace_folder(folder) as new:
        (new / "one").write_text("-1")
    writers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        settle_folder(folder)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert listing(tmp_path) == ["results"]
    assert (folder / "one").read_text() == "149"


# --- leftovers ----------------------------------------------------------------------------------


def test_only_what_dead_runs_left_is_removed(tmp_path: Path) -> None:
    with replace_file(tmp_path / "x") as mine, replace_folder(tmp_path / "y"):
        _, host, pid, number = mine.name.removesuffix(".partial").split("-")
        assert int(pid) == os.getpid()
        dead = tmp_path / f".lora3d-{host}-{dead_pid()}-{number}.partial"
        dead.write_text("half")
        dead_folder = tmp_path / f".lora3d-{host}-{dead_pid()}-{'1' * 16}.partial"
        (dead_folder / "deep").mkdir(parents=True)
        old = tmp_path / f".lora3d-{host}-{pid}-{'2' * 16}.partial"
        old.touch()
        os.utime(old, (time.time() - 7200, time.time() - 7200))
        elsewhere = tmp_path / dead.name.replace(f"-{host}-", "-000000-" if host != "000000" else "-111111-")
        elsewhere.touch()
        for other in (".lora3d-notes", "a.partial", f"x{dead.name}", f"{dead.name}x", "a.tmp"):
            (tmp_path / other).touch()
        before = set(tmp_path.iterdir())
        assert set(remove_leftovers(tmp_path, 3600.0)) == {dead, dead_folder, old}
        assert before - set(tmp_path.iterdir()) == {dead, dead_folder, old}
        os.utime(elsewhere, (time.time() - 7200, time.time() - 7200))
        assert remove_leftovers(tmp_path, 3600.0) == (elsewhere,)
    assert {"x", "y"} < set(listing(tmp_path))
    assert remove_leftovers(tmp_path / "missing") == ()
