"""The package's own rules: which module may import which, what importing costs, and that shapes are really checked."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import lora3d_ns
from lora3d_ns.types import PairPrediction, Sim3

PACKAGE = Path(lora3d_ns.__file__).parent

ORDER = [
    "errors",
    "conventions",
    "types",
    "progress",
    "atomic_files",
    "scene_io",
    "geometry",
    "photos",
    "images",
    "pair_graph",
    "network",
    "predict",
    "alignment",
    "pseudo_labels",
    "adapter",
    "stages",
    "reconstruct",
    "scene_details",
    "splits",
    "registration",
    "export",
    "benchmark_record",
    "evaluation",
    "rooms",
    "pictures",
    "scene_picture",
    "splat_picture",
    "commands",
    "photo_scene",
    "splat",
    "plugin",
    "report",
    "viewer",
    "demo",
    "benchmark_inference",
    "benchmark_alignment",
    "benchmark_finetune",
    "benchmark_rasterizer",
    "doctor",
    "gpu_check",
    "cli_parsing",
    "cli_config",
    "cli_conduct",
    "cli_benchmarks_splats",
    "cli_benchmarks_speed",
    "cli_benchmarks_gpu",
    "cli_benchmarks",
    "cli_photos",
    "cli_export",
    "cli_look",
    "cli",
]
"""Reading order: a module may import what stands above it."""

ONLY_IMPORTED_IN = {
    "nerfstudio": {"plugin"},
    "peft": {"adapter", "benchmark_finetune.py"},
    "mini_dust3r": {
        "network/official.py",
        "benchmark_inference.py",
        "benchmark_alignment.py",
        "benchmark_finetune.py",
    },
    "dust3r": {"network/official.py"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module or "")
    return names


def test_every_module_has_its_place() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} <= set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    place = ORDER.index(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for name in imported_names(path):
        root, _, rest = name.partition(".")
        if root == "lora3d_ns" and rest:
            other = rest.split(".")[0]
            assert ORDER.index(other) <= place, f"{path.name} imports {other}, which comes later"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_special_packages_stay_in_their_room(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    for name in imported_names(path):
        allowed = ONLY_IMPORTED_IN.get(name.split(".")[0])
        if allowed is not None:
            assert relative.parts[0] in allowed or str(relative) in allowed, f"{relative} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_annotations_are_real_so_that_shapes_can_be_checked(path: Path) -> None:
    assert "__future__" not in imported_names(path)


def test_importing_every_module_loads_nothing_heavy_and_changes_no_global_state() -> None:
    # What nerfstudio loads is looked at apart.
    names = [
        ".".join(("lora3d_ns", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in modules()
        if path.parent.name != "plugin"
    ]
    program = f"""
import importlib, sys, torch
before = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.get_default_dtype())
for name in {names!r}:
    importlib.import_module(name)
after = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.get_default_dtype())
assert before == after, (before, after)
heavy = {{"nerfstudio", "peft", "mini_dust3r", "matplotlib", "pycolmap", "cv2", "viser", "gsplat"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_command_line_starts_without_torch() -> None:
    program = "import sys, lora3d_ns.cli; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_entry_points_of_nerfstudio_load_and_are_light() -> None:
    """All ns-* commands load them: they add only what is listed here to nerfstudio's own imports (0.06 s, measured)."""
    program = """
import sys
import nerfstudio.models.splatfacto, nerfstudio.engine.trainer, nerfstudio.data.datamanagers.full_images_datamanager
before = set(sys.modules)
from importlib.metadata import distribution
points = [p for p in distribution("lora3d-ns").entry_points if p.group.startswith("nerfstudio.")]
loaded = {point.name: point.load() for point in points}
assert set(loaded) == {"lora3d", "lora3d-splat"}, loaded
assert loaded["lora3d-splat"].config.method_name == "lora3d-splat"
own = {name for name in sys.modules if name.startswith("lora3d_ns.")}
light = ("plugin", "conventions", "errors", "types", "atomic_files", "geometry", "splat.optimizer")
heavy = {name for name in own if not any(f"lora3d_ns.{part}".startswith(name) or name.startswith(f"lora3d_ns.{part}")
         for part in light)}
assert not heavy, heavy
assert not {"peft", "numba", "cv2", "pycolmap", "transformers"} & (set(sys.modules) - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_shape_checks_are_on() -> None:
    """The canary: if these pass silently, `--jaxtyping-packages` has stopped working and no shape is checked."""
    with pytest.raises(jaxtyping.TypeCheckError):
        Sim3(scale=torch.ones(2), rotation=torch.ones(3, 3, 3), translation=torch.ones(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        PairPrediction(
            points_first=torch.rand(4, 5, 3),
            points_second=torch.rand(4, 5, 3),
            confidence_first=torch.rand(5, 4),
            confidence_second=torch.rand(4, 5),
        )
    conventions = importlib.import_module("lora3d_ns.conventions")
    with pytest.raises(jaxtyping.TypeCheckError):
        conventions.opengl_from_opencv(torch.eye(3))


def test_the_version_is_the_packages() -> None:
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{lora3d_ns.__version__}"' in pyproject
