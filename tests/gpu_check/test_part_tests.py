"""The part that runs the tests marked `gpu`: what it counts, and that nothing but pytest is needed."""

from pathlib import Path

import pytest

from lora3d_ns.errors import RasterizerError
from lora3d_ns.gpu_check import part_build, part_tests
from lora3d_ns.gpu_check.part_tests import checkout, run, run_marked_tests
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row

MARK = "@pytest.mark" + ".gpu"

SOME_TESTS = f"""
import pytest

{MARK}
@pytest.mark.parametrize("number", [1, 2])
def test_good(number): pass

{MARK}
def test_bad(): assert 1 + 1 == 3, "a sum"

{MARK}
@pytest.mark.skipif(True, reason="there is no CUDA device")
def test_left_out(): pass

def test_of_the_cpu(): raise AssertionError("it has no mark")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with this project's own settings of pytest."""
    root = tmp_path / "checkout"
    (root / "tests" / "deep").mkdir(parents=True)
    (root / "pyproject.toml").write_text((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (root / "tests" / "deep" / "test_some.py").write_text(SOME_TESTS)
    # A machine that lacks what other tests import does not care: they are not collected.
    (root / "tests" / "test_others.py").write_text("import a_package_that_nobody_has")
    return root


def test_passed_failed_and_skipped(project: Path, tmp_path: Path) -> None:
    rows = list(run_marked_tests(project, tmp_path, required=True, limit_s=120.0))
    assert [(row.name, row.value, row.met) for row in rows] == [
        ("passed", 2.0, True),
        ("tests.deep.test_some::test_bad", None, False),
        ("skipped", 1.0, None),
    ]
    assert "a sum" in rows[1].note
    assert rows[1].failed
    assert rows[2].note == "1: there is no CUDA device"


def test_a_file_that_cannot_be_imported_fails_alone(project: Path, tmp_path: Path) -> None:
    (project / "tests" / "test_broken.py").write_text(f"import a_package_that_nobody_has  # {MARK}")
    rows = list(run_marked_tests(project, tmp_path, required=True, limit_s=120.0))
    assert rows[0] == Row(name="passed", value=2.0, goal=part_tests.AT_LEAST_ONE)
    assert [row.failed for row in rows] == [False, True, True, False]
    (broken,) = (row for row in rows if "test_broken" in row.name)
    assert "a_package_that_nobody_has" in broken.note


def test_nothing_that_ran_is_no_success(project: Path, tmp_path: Path) -> None:
    tests = project / "tests" / "deep" / "test_some.py"
    skipped = f'import pytest\n{MARK}\ndef test_left_out(): pytest.skip("no device")\n'
    tests.write_text(skipped)
    rows = list(run_marked_tests(project, tmp_path, required=True, limit_s=120.0))
    assert [(row.name, row.value, row.met) for row in rows] == [("passed", 0.0, False), ("skipped", 1.0, None)]
    assert [row.met for row in run_marked_tests(project, tmp_path, required=False, limit_s=120.0)] == [None, None]
    tests.write_text("")
    (row,) = run_marked_tests(project, tmp_path, required=True, limit_s=120.0)
    assert (row.value, row.met) == (0.0, False)


def test_a_pytest_that_does_not_run_or_end_is_a_failure(project: Path, tmp_path: Path) -> None:
    (row,) = run_marked_tests(project, tmp_path, required=True, limit_s=0.05)
    assert (row.failed, row.note) == (True, "not done after 0 s")
    (project / "tests" / "conftest.py").write_text("import a_package_that_nobody_has")
    (row,) = run_marked_tests(project, tmp_path, required=True, limit_s=120.0)
    assert row.failed
    assert "a_package_that_nobody_has" in row.note


def test_this_checkouts_tests_are_found(tmp_path: Path) -> None:
    assert checkout() == Path(__file__).parents[2]
    rows = list(run(PartSettings(device="cpu", tiny=True, folder=tmp_path)))
    assert not any(row.failed for row in rows)
    assert rows[0].name == "passed"
    if rows[0].value == 0.0:
        assert rows[1].value is not None
        assert rows[1].value >= 6
        assert "there is no CUDA device" in rows[1].note


def test_without_a_checkout_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lora3d_ns

    monkeypatch.setattr(lora3d_ns, "__file__", str(tmp_path / "lora3d_ns" / "__init__.py"))
    (tmp_path / "tests").mkdir()
    assert checkout() is None
    (row,) = run(PartSettings(device="cuda", folder=tmp_path))
    assert (row.name, row.failed) == ("no checkout", True)


def test_no_test_runs_before_gsplat_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_folder: Path) -> None:
        raise RasterizerError("no compiler", way_out="Get one")

    monkeypatch.setattr(part_build, "ensure_gsplat", refused)
    rows = list(run(PartSettings(device="cuda", folder=tmp_path)))
    assert [(row.name, row.failed) for row in rows] == [("gsplat", True)]
