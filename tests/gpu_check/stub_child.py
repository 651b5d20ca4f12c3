"""Stands in for `lora3d_ns.gpu_check.child`: parts that work, miss, fail, crash and hang."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lora3d_ns.gpu_check import child
from lora3d_ns.gpu_check.rows import Goal, Row


def parts(name: str):
    def run(settings):
        yield Row(name="a figure", value=1.0, unit="s", goal=Goal(limit=2.0))
        if name == "build":
            yield Row(name="too slow", value=3.0, unit="s", goal=Goal(limit=2.0), peer=6.0, note="a | b")
        if name == "tests":
            raise RuntimeError("it broke")
        if name == "rasterizer":
            sys.stderr.write("the last words\n")
            os._exit(7)
        if name == "network":
            # Something that it started in a group of its own, as ninja does, and that must not outlive it.
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            sleeper = subprocess.Popen(command, start_new_session=True)
            (settings.folder / "pid").write_text(str(sleeper.pid))
            time.sleep(600)

    return run


child.part_function = parts

if __name__ == "__main__":
    assert Path(sys.argv[sys.argv.index("--folder") + 1]).is_dir()
    raise SystemExit(child.main())
