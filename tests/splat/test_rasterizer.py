"""The choice between gsplat's rasterizer and ours."""

import logging
import subprocess
import sys
import types
from typing import Any

import pytest
import torch

from lora3d_ns.errors import RasterizerError
from lora3d_ns.splat import rasterizer
from lora3d_ns.splat.rasterize_cpu import rasterization
from lora3d_ns.splat.rasterizer import choose_rasterizer

CUDA = torch.device("cuda")


@pytest.fixture(name="backend")
def _backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """gsplat as it is where nothing has been built; `_C` may be put into it."""

    def their_rasterization() -> None: ...

    modules: dict[str, Any] = {
        name: types.ModuleType(name) for name in ("gsplat", "gsplat.cuda", "gsplat.cuda._backend", "gsplat.rendering")
    }
    modules["gsplat.cuda._backend"]._C = None
    modules["gsplat.rendering"].rasterization = their_rasterization
    modules["gsplat"].cuda, modules["gsplat"].rendering = modules["gsplat.cuda"], modules["gsplat.rendering"]
    modules["gsplat.cuda"]._backend = modules["gsplat.cuda._backend"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["gsplat.cuda._backend"]


def test_on_the_cpu_it_is_ours_and_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    rasterizer._say_that_the_cpu_is_used.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert choose_rasterizer(torch.device("cpu")) is rasterization
        assert choose_rasterizer(torch.device("cpu")) is rasterization
    assert len(caplog.messages) == 1
    assert "rasterized on the CPU" in caplog.messages[0]
    assert caplog.messages[0].startswith("no CUDA device" if not torch.cuda.is_available() else "the CPU was asked for")


def test_on_cuda_it_is_gsplats(backend: Any) -> None:
    backend._C = object()
    assert choose_rasterizer(CUDA) is vars(sys.modules["gsplat.rendering"])["rasterization"]


def test_gsplat_without_kernels_is_an_error_at_once(backend: Any) -> None:
    assert backend._C is None
    with pytest.raises(RasterizerError, match=r"no nvcc.*lora3d doctor"):
        choose_rasterizer(CUDA)


@pytest.mark.parametrize(
    "error", [RuntimeError("Error building extension\n 'gsplat_cuda'"), OSError("CUDA_HOME"), ImportError("x")]
)
def test_kernels_that_cannot_be_built_are_an_error_of_ours(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "gsplat":
                raise error

    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Fails(), *sys.meta_path])
    with pytest.raises(RasterizerError, match="lora3d doctor") as caught:
        choose_rasterizer(CUDA)
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_other_devices_are_refused() -> None:
    with pytest.raises(RasterizerError, match="meta"):
        choose_rasterizer(torch.device("meta"))


def test_importing_the_choice_and_the_rasterizer_is_light() -> None:
    program = """
import sys, lora3d_ns.splat.rasterizer, lora3d_ns.splat.rasterize_cpu
assert not {"numba", "gsplat", "nerfstudio"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
