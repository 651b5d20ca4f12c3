"""One part in a process of its own: `python -m lora3d_ns.gpu_check.child`, started by `lora3d_ns.gpu_check.runner`."""

import argparse
import logging
import os
import traceback
from pathlib import Path

from lora3d_ns.errors import Lora3dError
from lora3d_ns.gpu_check.parts import PartSettings, part_function
from lora3d_ns.gpu_check.rows import Row, json_of_row


def main(arguments: list[str] | None = None) -> int:
    """Runs one part; each row goes to the file as soon as it is there, so that a later failure does not take it along.

    Returns:
        0, or 1 if the part failed: then its last row says how, and the traceback is in the log.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = PartSettings(device=given.device, tiny=given.tiny, peer=given.peer, seed=given.seed, folder=given.folder)
    with given.rows.open("a") as file:

        def written(row: Row) -> None:
            file.write(json_of_row(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

        try:
            for row in part_function(given.part)(settings):
                written(row)
        except Lora3dError as error:
            traceback.print_exc()
            written(Row(name=f"{given.part} stopped", note=str(error), failed=True))
            return 1
        # The process ends here, and the table is where its user looks.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            written(Row(name=f"{given.part} stopped", note=f"{type(error).__name__}: {error}", failed=True))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
