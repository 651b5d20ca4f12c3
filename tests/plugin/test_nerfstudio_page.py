"""The page on nerfstudio's commands: every line is understood, and what it says of settings is so."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts import render
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.viewer.run_viewer import RunViewer
from system_packages import ns_export

from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig
from lora3d_ns.plugin.method import lora3d_splat
from lora3d_ns.plugin.pipeline import LONGEST_SIDE_CPU_PX, LONGEST_SIDE_CUDA_PX

PAGE = (Path(__file__).parents[2] / "docs" / "nerfstudio.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("ns-")
]
PARSED_AS: dict[str, Callable[[], Any]] = {
    "ns-train": lambda: AnnotatedBaseConfigUnion,
    "ns-eval": lambda: ComputePSNR,
    "ns-render": lambda: render.Commands,
    "ns-export": lambda: ns_export().Commands,
    "ns-viewer": lambda: tyro.conf.FlagConversionOff[RunViewer],
}


def test_every_command_is_there() -> None:
    assert {line.split()[0] for line in COMMANDS} == set(PARSED_AS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line: str) -> None:
    name, *words = shlex.split(line)
    parsed: Any = tyro.cli(PARSED_AS[name](), args=words)
    if name == "ns-train":
        assert isinstance(parsed.pipeline.datamanager.dataparser, Lora3dDataParserConfig)


def test_settings_of_the_table_exist() -> None:
    options = [
        word for row in re.findall(r"^\| `.*$", PAGE, flags=re.MULTILINE) for word in re.findall(r"--[\w.-]+", row)
    ]
    assert len(options) > 10
    parser = Lora3dDataParserConfig()
    for option in options:
        place: Any = lora3d_splat.config if "." in option else parser
        for name in option[2:].replace("-", "_").split("."):
            assert hasattr(place, name), option
            place = getattr(place, name)


def test_defaults_of_the_page() -> None:
    config: Any = lora3d_splat.config
    for words in (
        f"every {config.steps_per_save} steps",
        f"{LONGEST_SIDE_CUDA_PX} on CUDA, {LONGEST_SIDE_CPU_PX} on a CPU",
        f"({config.pipeline.model.test_pose_steps} steps,",
        f"--eval-interval {Lora3dDataParserConfig().eval_interval}",
        f"--train-fraction {Lora3dDataParserConfig().train_fraction}",
        f"`{Lora3dDataParserConfig().network}` (default)",
    ):
        assert words in " ".join(PAGE.split()), words
