"""A program that kills writers in the middle, again and again, and looks at what they leave.

`python kills.py {file,scene} FOLDER`. The writers are forks of this one process, so that torch is imported once.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from stored_samples import assert_same, finished_details, finished_scene

from lora3d_ns.atomic_files import remove_leftovers
from lora3d_ns.scene_io.scenes import load_details, load_scene, save_scene
from lora3d_ns.scene_io.structures import read_result, write_result

ROUNDS = 40


def kill_writers(write: Callable[[int], None], number_found: Callable[[], int], *, folder: Path) -> int:
    """Runs `write(number)` with ever higher numbers in processes that are killed; says how many kills hit a write."""
    dice = random.Random(0)
    number, hits = 0, 0
    for _ in range(ROUNDS):
        reading, writing = os.pipe()
        writer = os.fork()
        if writer == 0:
            while True:
                number += 1
                write(number)
                os.write(writing, b".")
        # The first has been written; then any moment.
        os.read(reading, 1)
        time.sleep(dice.uniform(0.0, 0.02))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        os.close(reading)
        os.close(writing)
        found = number_found()
        assert found > number, f"{found} after {number}"
        number = found
        hits += len(remove_leftovers(folder)) > 0
    return hits


def main(kind: str, folder: Path) -> None:
    torch.set_num_threads(1)
    path = folder / kind

    def write_file(number: int) -> None:
        write_result(path, {"number": number, "values": torch.full((300_000,), number)})

    def number_in_file() -> int:
        found = read_result(path, dict)
        assert torch.equal(found["values"], torch.full((300_000,), found["number"]))
        return found["number"]

    def write_scene(number: int) -> None:
        scene = finished_scene(number, points=2000)
        save_scene(scene, path, details=finished_details(scene, number))

    def number_in_scene() -> int:
        found = load_scene(path)
        number = found.provenance["seed"]
        assert isinstance(number, int)
        assert_same(found, finished_scene(number, points=2000))
        assert_same(load_details(path), finished_details(found, number))
        assert len(json.loads((path / "cameras.json").read_text(encoding="utf-8"))["cameras"]) == 2
        return number

    write, number_found = (write_file, number_in_file) if kind == "file" else (write_scene, number_in_scene)
    hits = kill_writers(write, number_found, folder=folder)
    # Otherwise nothing has been tested.
    assert hits > 0, "no kill hit a write"
    assert [found.name for found in folder.iterdir()] == [kind]
    sys.stderr.write(f"{hits} of {ROUNDS} kills hit a write\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
