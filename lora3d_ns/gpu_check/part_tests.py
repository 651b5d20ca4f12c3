"""The tests marked `gpu`, with pytest alone: none of the plugins that the suite is otherwise run with is needed."""

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lora3d_ns.gpu_check.common import independent
from lora3d_ns.gpu_check.part_build import LIMIT_S, gsplat_first, run_until
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row

_MARK = "mark.gpu"
_NOTE_CHARACTERS = 400

AT_LEAST_ONE = Goal(limit=1.0, sense="at least")
"""A run in which every test was skipped proves nothing."""


def run(settings: PartSettings) -> Iterator[Row]:
    """How many passed, each that failed with its message, how many were skipped and why."""
    root = checkout()
    if root is None:
        yield Row(name="no checkout", note="the tests are not beside the package", failed=settings.device == "cuda")
        return
    if settings.device == "cuda" and not (yield from gsplat_first(settings)):
        return
    yield from independent("tests", lambda: run_marked_tests(root, settings.folder, required=settings.device == "cuda"))


def checkout() -> Path | None:
    """The folder that holds this package's source and its tests; None where the package is installed without them."""
    import lora3d_ns

    root = Path(lora3d_ns.__file__).parents[1]
    project = root / "pyproject.toml"
    belongs = project.is_file() and 'name = "lora3d-ns"' in project.read_text()
    return root if belongs and (root / "tests").is_dir() else None


def run_marked_tests(root: Path, folder: Path, *, required: bool, limit_s: float = LIMIT_S) -> Iterator[Row]:
    """Rows of the tests below `root/tests` that carry the mark.

    Only files that hold the mark are collected: others may import what this machine has not.

    Args:
        root: With the project's settings of pytest.
        folder: For pytest's words and its report.
        required: Whether one test at least has to pass.
        limit_s: Seconds they may take in all.
    """
    files = sorted(path for path in (root / "tests").rglob("test_*.py") if _MARK in path.read_text())
    if not files:
        yield Row(name="passed", value=0.0, goal=AT_LEAST_ONE if required else None, note=f"no file holds {_MARK}")
        return
    report, log = folder / "tests.xml", folder / "tests.log"
    report.unlink(missing_ok=True)
    # The project's own options name plugins that may be missing, and leave these tests out.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", f"--rootdir={root}", "-c", str(root / "pyproject.toml")]
    command += [f"--junitxml={report}", *map(str, files)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    code = run_until(command, log, limit_s=limit_s, environment=environment)
    if code is None:
        yield Row(name="pytest", note=f"not done after {limit_s:.0f} s", failed=True)
    elif not report.is_file():
        words = " ".join(log.read_text(errors="replace").split())[-_NOTE_CHARACTERS:]
        yield Row(name="pytest", note=f"code {code}: ...{words}", failed=True)
    else:
        yield from rows_of_report(report, required=required)


def rows_of_report(report: Path, *, required: bool) -> Iterator[Row]:
    """Rows of a report in JUnit's format.

    Args:
        report: As pytest writes it.
        required: Whether one test at least has to pass.
    """
    passed = 0
    reasons: Counter[str] = Counter()
    failed: list[Row] = []
    # Written by pytest just now, on our behalf.
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if wrong is not None:
            # Of a file that cannot be collected the message says only that, and the text says why.
            said = [wrong.get("message") or "", *(wrong.text or "").splitlines()[-1:]]
            note = " / ".join(" ".join(word.split()) for word in said if word)[:_NOTE_CHARACTERS]
            failed.append(Row(name=name, note=note, failed=True))
        elif skipped is not None:
            reasons[skipped.get("message") or "no reason given"] += 1
        else:
            passed += 1
    yield Row(name="passed", value=float(passed), goal=AT_LEAST_ONE if required else None)
    yield from failed
    if reasons:
        words = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        yield Row(name="skipped", value=float(reasons.total()), note=words[:_NOTE_CHARACTERS])
