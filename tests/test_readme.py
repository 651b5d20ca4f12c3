"""The README is a script: its Python runs, its commands exist, its files are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora3d_ns import demo
from lora3d_ns.cli import main
from lora3d_ns.network import checkpoints
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder_with_photos_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `photos`, and a small network where the README's `512_dpt` would be downloaded."""
    torch.manual_seed(0)
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(640, 480), (480, 640), (500, 500)]):
        noise = torch.randint(0, 255, (size[1], size[0], 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "photos" / f"{number}.jpg")
    config = Dust3rConfig(
        encoder_width=16,
        encoder_depth=1,
        encoder_heads=1,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=1,
        head="linear",
    )
    network = Dust3r(config)
    state = network.state_dict()
    # Untrained, but every patch is a small piece of wall before the camera: channels x, y, z, confidence of its pixels.
    y, x = torch.meshgrid(torch.linspace(-0.1, 0.1, 16), torch.linspace(-0.1, 0.1, 16), indexing="ij")
    for head in ("downstream_head1", "downstream_head2"):
        state[f"{head}.proj.weight"] *= 0.01
        state[f"{head}.proj.bias"].view(4, 16, 16)[:3] = torch.stack([x, y, torch.ones_like(x)])
    network.load_state_dict(state)
    checkpoints.save_network(network, tmp_path / "small.safetensors")
    real = checkpoints.load_network

    def load_small(name: str | Path, **options: object) -> Dust3r:
        assert name == "512_dpt"
        return real(tmp_path / "small.safetensors", **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoints, "load_network", load_small)
    monkeypatch.setattr(demo, "load_network", load_small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder_with_photos_and_network")
def test_the_library_examples_run_and_are_short(capsys: pytest.CaptureFixture) -> None:
    predicting, aligning = python_blocks()
    names: dict[str, object] = {}
    for block, printed_lines in ((predicting, 6), (aligning, 3)):
        assert len([line for line in block.splitlines() if line.strip()]) <= 10
        exec(compile(block, "README.md", "exec"), names)
        assert len(capsys.readouterr().out.splitlines()) == printed_lines


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("lora3d demo")])
def test_the_demo_on_your_own_photos_runs(command: str, folder_with_photos_and_network: Path) -> None:
    main(shlex.split(command)[1:])
    assert (folder_with_photos_and_network / "outputs" / "demo" / "report.json").exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("lora3d")])
def test_every_lora3d_command_is_understood(command: str) -> None:
    # What each does is tested in test_cli.py at a size that fits a test; here: that the program knows the spelling.
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(command)[1:], "--help"])
    assert stopped.value.code == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("ns-train")])
def test_every_ns_train_command_is_understood(command: str) -> None:
    # What it does is tested in plugin/test_round.py.
    import tyro
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=shlex.split(command)[1:])
    assert config.method_name == "lora3d-splat"
    assert config.data == Path("photos")
    assert config.pipeline.datamanager.dataparser.network == ("rooms" if "rooms" in command else "512_dpt")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_every_make_target_exists(command: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_no_command_is_left_out() -> None:
    assert all(command.startswith(("make ", "lora3d ", "ns-train ")) for command in COMMANDS)
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)]+)\)", README))
def test_every_linked_file_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_interpreter_is_one_the_readme_promises() -> None:
    assert (3, 10) <= sys.version_info[:2] <= (3, 12)
