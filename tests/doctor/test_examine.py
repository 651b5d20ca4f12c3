"""Machines of every kind, none of them this one."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from lora3d_ns.cli import main
from lora3d_ns.doctor import machine as machine_module
from lora3d_ns.doctor.accelerator import build_jobs
from lora3d_ns.doctor.examine import examine
from lora3d_ns.doctor.findings import GIB, Finding, Findings, as_table
from lora3d_ns.doctor.machine import (
    ALEXNET_FILE,
    DATAPARSERS,
    METHODS,
    Gpu,
    Machine,
    Memory,
    Plugin,
    Requirement,
    Torch,
)
from lora3d_ns.doctor.resources import PAIR_BYTES, photos_at_most

OURS = (
    Plugin(group=METHODS, name="lora3d-splat", package="lora3d-ns", module="lora3d_ns.plugin.method"),
    Plugin(group=DATAPARSERS, name="lora3d", package="lora3d-ns", module="lora3d_ns.plugin.dataparser"),
)
H200 = Gpu(name="NVIDIA H200", memory_bytes=139 * GIB, capability=(9, 0))
NVCC_SAYS = "Cuda compilation tools, release 13.0, V13.0.88"
CUDA = {
    "torch": Torch(version="2.11.0+cu130", cuda="13.0", hip=None, gpus=(H200,), said=""),
    "driver": "NVIDIA driver 580.1",
}
TOOLS = {
    "programs": {"nvcc": "/opt/cuda/bin/nvcc", "c++": "/usr/bin/c++", "ninja": "/usr/bin/ninja"},
    "home": Path("/opt/cuda"),
    "there": {"/opt/cuda/include/cuda_runtime.h"},
}
WEIGHTS = {"cached": True, "sizes": {"rooms.safetensors": 5_000_000, ALEXNET_FILE: 244_408_911}, "digest": "7be5be79ab"}


class Made(Machine):
    """A machine of which everything is said; by default a healthy one without CUDA and without downloads."""

    def __init__(self, **said: object) -> None:
        self.said: dict = {
            "torch": Torch(version="2.11.0+cpu", cuda=None, hip=None, gpus=(), said=""),
            "driver": None,
            "python": (3, 11, 7),
            "requirements": (Requirement(name="gsplat", wanted="==1.4.0", installed="1.4.0", fits=True),),
            "environment": {},
            "programs": {},
            "home": None,
            "there": set(),
            "gsplat": None,
            "cached": False,
            "sizes": {"rooms.safetensors": 5_000_000},
            "digest": "",
            "free": {},
            "writable": True,
            "cores": 16,
            "memory": Memory(total=128 * GIB, available=100 * GIB, swap=0),
            "plugins": OURS,
            "failures": {},
            "libraries": {"usb-1.0": "libusb-1.0.so.0"},
            **said,
        }

    def answer(self, name: str) -> object:
        answer = self.said[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def python(self) -> tuple[int, int, int]:
        return self.said["python"]

    def requirements(self) -> tuple[Requirement, ...]:
        return self.said["requirements"]

    def version(self, package: str) -> str | None:  # noqa: ARG002
        return "1.0"

    def torch(self) -> Torch:
        return self.answer("torch")  # pyright: ignore[reportReturnType]

    def driver(self) -> str | None:
        return self.answer("driver")  # pyright: ignore[reportReturnType]

    def environment(self, name: str) -> str | None:
        return self.said["environment"].get(name)

    def program(self, name: str) -> Path | None:
        found = self.said["programs"].get(name)
        return None if found is None else Path(found)

    def exists(self, path: Path) -> bool:
        return str(path) in self.said["there"]

    def program_says(self, program: Path, argument: str) -> str | None:
        assert argument == "--version"
        return NVCC_SAYS if program.name == "nvcc" else f"{program.name} 12.2"

    def cuda_home(self) -> Path | None:
        return self.said["home"]

    def gsplat_folder(self) -> Path:
        return Path("/cache/torch_extensions/gsplat_cuda")

    def gsplat_binary(self) -> Path | None:
        return self.said["gsplat"]

    def hub_cache(self) -> Path:
        return Path("/cache/hub")

    def cached_by_hub(self, repository: str, file: str) -> Path | None:
        return self.hub_cache() / repository / file if self.said["cached"] else None

    def alexnet(self) -> Path:
        return Path("/cache/torch/hub/checkpoints", ALEXNET_FILE)

    def size_bytes(self, file: Path) -> int | None:
        return self.said["sizes"].get(file.name)

    def sha256(self, file: Path) -> str:
        assert file == self.alexnet()
        return self.said["digest"]

    def free_disk_bytes(self, folder: Path) -> int:
        return self.said["free"].get(str(folder), 500 * GIB)

    def writable(self, folder: Path) -> bool:  # noqa: ARG002
        return self.said["writable"]

    def cores(self) -> int:
        return self.said["cores"]

    def memory(self) -> Memory:
        return self.answer("memory")  # pyright: ignore[reportReturnType]

    def plugins(self) -> tuple[Plugin, ...]:
        return self.said["plugins"]

    def plugin_failures(self) -> dict[str, str]:
        return self.answer("failures")  # pyright: ignore[reportReturnType]

    def system_library(self, name: str) -> str | None:
        return self.said["libraries"].get(name)


def examined(*parts: Mapping[str, object], **said: object) -> Findings:
    merged: dict[str, object] = {}
    for part in (*parts, said):
        merged |= part
    return examine(Made(**merged))


def how(findings: Findings, job: str) -> str:
    (verdict,) = (verdict for verdict in findings.verdicts if job in verdict.job)
    return verdict.how


def test_a_machine_with_everything_is_ok_throughout() -> None:
    findings = examined(CUDA, TOOLS, WEIGHTS, gsplat=Path("/cache/gsplat_cuda.so"))
    assert {finding.status for finding in findings.findings} == {"ok"}
    assert not any(finding.fix for finding in findings.findings)
    assert findings.ready
    assert all(verdict.ready for verdict in findings.verdicts)
    assert how(findings, "ns-train") == "on the GPU with gsplat"
    assert how(findings, "lora3d reconstruct") == "on the GPU"
    assert "LPIPS" in how(findings, "ns-eval")
    assert "NVIDIA H200, 139 GiB, capability 9.0" in findings["CUDA device"].detail
    assert "/cache/gsplat_cuda.so" in findings["gsplat"].detail


def test_without_cuda_the_main_job_runs_on_the_cpu() -> None:
    findings = examined()
    assert findings.ready
    assert findings["CUDA device"].status == findings["gsplat"].status == "limited"
    assert findings["compilers"].status == "ok"
    assert "no NVIDIA driver" in findings["CUDA device"].detail
    assert how(findings, "ns-train").startswith("on the CPU")
    assert how(findings, "lora3d reconstruct") == "on the CPU; its weights are fetched first"


def test_a_driver_with_a_torch_without_cuda_is_told_apart() -> None:
    finding = examined(driver="NVIDIA driver 580.1, NVIDIA H200")["CUDA device"]
    assert finding.status == "limited"
    assert "580.1" in finding.detail
    assert "built without CUDA" in finding.detail
    assert "Reinstall torch" in finding.fix


def test_a_driver_too_old_and_hidden_devices_are_told_apart() -> None:
    blind = Torch(version="2.11.0+cu130", cuda="13.0", hip=None, gpus=(), said="The NVIDIA driver is too old.")
    old = examined(torch=blind, driver="NVIDIA driver 470.1")["CUDA device"]
    assert "The NVIDIA driver is too old" in old.detail
    assert "Update the driver" in old.fix
    hidden = examined(torch=blind, driver="x", environment={"CUDA_VISIBLE_DEVICES": "7"})["CUDA device"]
    assert "CUDA_VISIBLE_DEVICES=7" in hidden.detail
    assert hidden.fix == "Unset CUDA_VISIBLE_DEVICES"


def test_amd_and_small_devices_are_limited() -> None:
    amd = Torch(version="2.11.0+rocm7", cuda=None, hip="7.0", gpus=(H200,), said="")
    findings = examined(torch=amd)
    assert "ROCm 7.0" in findings["CUDA device"].detail
    assert findings["gsplat"].status == "limited"
    small = Gpu(name="GeForce MX", memory_bytes=2 * GIB, capability=(7, 5))
    finding = examined(CUDA, torch=Torch(version="2", cuda="13.0", hip=None, gpus=(small,), said=""))["CUDA device"]
    assert finding.status == "limited"
    assert "5.1 GiB" in finding.detail


def test_cuda_without_nvcc_leaves_the_cpu_for_splats() -> None:
    findings = examined(CUDA, WEIGHTS)
    assert findings.ready
    assert findings["compilers"].status == findings["gsplat"].status == "missing"
    assert "CUDA toolkit 13.x" in findings["compilers"].fix
    assert "CameraModelType" in findings["gsplat"].detail
    assert "--machine.device-type cpu" in how(findings, "ns-train")
    assert how(findings, "lora3d reconstruct") == "on the GPU"


def test_a_toolkit_that_is_installed_but_not_on_the_path() -> None:
    findings = examined(CUDA, home=Path("/usr/local/cuda"), there={"/usr/local/cuda/bin/nvcc"})
    assert "export PATH=/usr/local/cuda/bin:$PATH" in findings["compilers"].fix


def test_cuda_with_tools_says_what_the_build_takes() -> None:
    findings = examined(CUDA, TOOLS, memory=Memory(total=64 * GIB, available=25 * GIB, swap=0))
    gsplat = findings["gsplat"]
    assert findings["compilers"].status == "ok"
    assert gsplat.status == "limited"
    assert "about 8 minutes with 6 jobs" in gsplat.detail
    assert "MAX_JOBS=6 python -c" in gsplat.fix
    # With it here and without it in ns-train, ninja would compile everything twice.
    assert "TORCH_CUDA_ARCH_LIST" not in gsplat.fix
    assert how(findings, "ns-train") == "on the GPU, once gsplat is built"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"torch": Torch(version="2.6+cu124", cuda="12.4", hip=None, gpus=(H200,), said="")}, "torch refuses to build"),
        ({"there": set()}, "include/cuda_runtime.h is not"),
        ({"programs": {"nvcc": "/opt/cuda/bin/nvcc", "c++": "/usr/bin/c++"}}, "no ninja on PATH"),
        ({"programs": {"nvcc": "/opt/cuda/bin/nvcc", "ninja": "/usr/bin/ninja"}}, "no c++ on PATH"),
        ({"environment": {"CXX": "g++-9"}}, "no g++-9 on PATH"),
    ],
    ids=["other major version", "wrong CUDA_HOME", "ninja", "c++", "CXX"],
)
def test_whatever_stops_the_build_is_named(changes: dict[str, object], says: str) -> None:
    findings = examined(CUDA, TOOLS, changes)
    assert says in findings["compilers"].detail
    assert findings["compilers"].status == findings["gsplat"].status == "missing"
    assert findings["compilers"].fix in findings["gsplat"].fix


@pytest.mark.parametrize(("cores", "gib", "jobs"), [(16, 128, 16), (16, 25, 6), (2, 128, 2), (8, 1, 1)])
def test_compiler_jobs_fit_cores_and_memory(cores: int, gib: int, jobs: int) -> None:
    assert build_jobs(cores, gib * GIB) == jobs


def test_weights_in_the_cache_to_be_fetched_or_forbidden() -> None:
    assert examined(cached=True)["network"].status == "ok"
    fetched = examined()["network"]
    assert fetched.status == "limited"
    assert "CC BY-NC-SA 4.0: no commercial use" in fetched.detail
    assert "hf download naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt config.json model.safetensors" in fetched.fix
    offline = examined(environment={"HF_HUB_OFFLINE": "1"})
    assert offline["network"].status == "missing"
    assert "HF_HUB_OFFLINE" in offline["network"].detail
    assert not offline.ready
    assert how(offline, "ns-train") == "missing: network"
    assert how(offline, "lora3d demo") == "offline, on the CPU"


def test_a_network_by_path() -> None:
    files = {"/weights/config.json", "/weights/model.safetensors"}
    assert examine(Made(there=files), network="/weights")["network"].status == "ok"
    incomplete = examine(Made(there={"/weights/config.json"}), network="/weights")["network"]
    assert incomplete.status == "missing"
    assert incomplete.detail == "/weights/model.safetensors is not there"
    assert examine(Made(there={"/my.pth"}), network="/my.pth")["network"].status == "ok"
    assert examine(Made(), network="rooms")["network"].status == "ok"


def test_without_the_bundled_network_there_is_no_demo() -> None:
    findings = examined(sizes={})
    assert how(findings, "lora3d demo") == "missing: bundled network"
    assert findings.ready


def test_weights_of_lpips_present_damaged_and_absent() -> None:
    assert examined(WEIGHTS)["LPIPS weights"].status == "ok"
    damaged = examined(WEIGHTS, digest="00000000")["LPIPS weights"]
    assert damaged.status == "limited"
    assert "damaged: 244408911 bytes" in damaged.detail
    absent = examined()["LPIPS weights"]
    assert absent.status == "limited"
    assert "http" not in absent.fix
    assert "/cache/torch/hub/checkpoints" in absent.fix
    assert how(examined(), "ns-eval") == "PSNR and SSIM; LPIPS once its weights are there"


def test_full_disks_are_named_with_their_way_out() -> None:
    little = examined(free={"outputs": GIB})["disk"]
    assert little.status == "limited"
    assert "1.0 GiB free for results in outputs, 2.0 wanted" in little.detail
    full = examined(free={"outputs": GIB // 10})
    assert full["disk"].status == "missing"
    assert not full.ready
    cache = examined(free={"/cache/hub": GIB})["disk"]
    assert cache.status == "missing"
    assert "HF_HOME" in cache.fix
    # With the weights there, that folder's room does not matter.
    assert examined(free={"/cache/hub": GIB}, cached=True)["disk"].status == "ok"
    build = examined(CUDA, free={"/cache/torch_extensions/gsplat_cuda": GIB // 2})["disk"]
    assert "TORCH_EXTENSIONS_DIR" in build.fix
    assert "may not write" in examined(writable=False)["disk"].detail


def test_memory_says_how_many_photos() -> None:
    # 122 * 123 pairs of 6.3 MB are 94.4 GB; nine tenths of (100 - 2.2) GiB are 94.5 GB.
    assert "123 photos" in examined()["memory"].detail
    few = examined(memory=Memory(total=4 * GIB, available=3 * GIB, swap=0))["memory"]
    assert few.status == "limited"
    assert "no swap" in few.detail
    assert "--arm robust" in few.fix


@pytest.mark.parametrize("gib", [1, 8, 100])
def test_the_photos_that_fit_are_those_that_prediction_accepts(gib: int) -> None:
    """`predict_pairs` refuses what takes more than nine tenths: bytes per pixel of both maps, pixel by pixel."""
    photos = photos_at_most(gib * GIB)
    assert photos * (photos - 1) * PAIR_BYTES <= 0.9 * gib * GIB < (photos + 1) * photos * PAIR_BYTES


def test_a_pair_takes_what_prediction_says_it_takes(monkeypatch: pytest.MonkeyPatch, make_views: object) -> None:
    from lora3d_ns import predict
    from lora3d_ns.errors import InsufficientMemoryError
    from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph

    views = make_views([(384, 512)] * 3)  # pyright: ignore[reportCallIssue]
    graph = build_pair_graph(CompleteGraph(), 3)
    needed = 6 * PAIR_BYTES

    class Host:
        available = math.ceil(needed / 0.9)

    monkeypatch.setattr(predict.psutil, "virtual_memory", Host)
    predict._check_host_memory(views, graph, predict.PredictionSettings())
    Host.available = math.floor(needed / 0.9) - 8
    with pytest.raises(InsufficientMemoryError):
        predict._check_host_memory(views, graph, predict.PredictionSettings())


def test_a_broken_plugin_is_named_with_its_error() -> None:
    other = Plugin(group=METHODS, name="garfield", package="garfield", module="garfield.config")
    failures = {f"{METHODS} garfield": "ModuleNotFoundError: No module named 'cuml'"}
    findings = examined(plugins=(*OURS, other), failures=failures)
    broken = findings["nerfstudio"]
    assert broken.status == "missing"
    assert "garfield" in broken.detail
    assert "No module named 'cuml'" in broken.detail
    assert broken.fix.endswith("pip uninstall garfield")
    assert not findings.ready
    whole = examined(plugins=(*OURS, other))["nerfstudio"]
    assert whole.status == "ok"
    assert "garfield of garfield" in whole.detail


def test_plugins_are_loaded_only_where_that_says_something() -> None:
    never = AssertionError("loaded")
    assert examine(Made(failures=never))["nerfstudio"].status == "ok"
    finding = examine(Made(failures=never), thorough=True)["nerfstudio"]
    assert finding.detail == "could not be examined: AssertionError: loaded"
    ours = {f"{METHODS} lora3d-splat": "ImportError: libGL.so.1"}
    assert examine(Made(failures=ours), thorough=True)["nerfstudio"].fix == "Install what the error names"


def test_an_installation_without_entry_points() -> None:
    findings = examined(plugins=OURS[:1])
    assert findings["nerfstudio"].status == "missing"
    assert findings["nerfstudio"].detail == "not registered: lora3d"
    assert not findings.ready


def test_packages_outside_their_range() -> None:
    wrong = (
        Requirement(name="gsplat", wanted="==1.4.0", installed="1.5.2", fits=False),
        Requirement(name="peft", wanted=">=0.14", installed=None, fits=False),
    )
    findings = examined(requirements=wrong)
    assert "gsplat 1.5.2 (needs ==1.4.0), peft missing (needs >=0.14)" in findings["packages"].detail
    assert findings["packages"].fix == "pip install 'gsplat==1.4.0' 'peft>=0.14'"
    assert not findings.ready
    assert how(findings, "lora3d demo") == "missing: packages"
    assert examined(python=(3, 13, 0))["Python"].status == "missing"


def test_what_open3d_misses_is_no_obstacle_to_the_main_job() -> None:
    findings = examined(libraries={})
    assert findings["ns-export"].status == "missing"
    assert findings["ns-export"].fix == "apt-get install libusb-1.0-0"
    assert findings.ready


def test_whatever_fails_unexpectedly_is_shown_and_stops_nothing() -> None:
    broken = examined(memory=PermissionError(13, "no /proc here"))
    assert broken["memory"].status == "limited"
    assert "PermissionError" in broken["memory"].detail
    assert "no /proc here" in broken["memory"].detail
    assert broken.ready
    without_torch = examined(torch=OSError("libcudart.so.13: cannot open shared object file"))
    assert without_torch["torch"].status == "missing"
    assert "OSError: libcudart.so.13" in without_torch["torch"].detail
    assert not without_torch.ready
    assert len(without_torch.findings) == 13


@pytest.mark.parametrize(
    "findings",
    [
        examined(),
        examined(CUDA),
        examined(CUDA, TOOLS),
        examined(sizes={}, libraries={}, plugins=()),
        examined(torch=OSError("?"), free={"outputs": 0}, memory=Memory(total=GIB, available=0, swap=GIB)),
    ],
    ids=["CPU", "CUDA", "buildable", "bare", "broken"],
)
def test_every_finding_that_is_not_ok_has_a_fix_and_both_forms_show_it(findings: Findings) -> None:
    console = Console(file=io.StringIO(), width=4000)
    console.print(as_table(findings))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    record = json.loads(json.dumps(findings.record()))
    assert record["ready"] == findings.ready
    for finding, written in zip(findings.findings, record["findings"], strict=True):
        assert (finding.fix == "") == (finding.status == "ok"), finding
        assert finding.needed_for
        assert Finding(**written) == finding
        for text in (finding.name, finding.status, finding.detail, finding.fix):
            assert text in shown
    for verdict in findings.verdicts:
        assert verdict.job in shown
        assert verdict.how in shown


def test_this_machine_answers_every_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, whatever it is: no check may fail, and nothing may go out."""

    def refuse(*_: object) -> None:
        raise AssertionError("doctor went to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    report = tmp_path / "report.json"
    main(["doctor", "--output", str(tmp_path / "new" / "outputs"), "--network", "rooms", "--json", str(report)])
    record = json.loads(report.read_text())
    assert [finding["detail"] for finding in record["findings"] if "could not be examined" in finding["detail"]] == []
    by_name = {finding["name"]: finding for finding in record["findings"]}
    assert by_name["packages"]["status"] == by_name["torch"]["status"] == by_name["nerfstudio"]["status"] == "ok"


def test_the_exit_code_is_1_where_the_main_job_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "Machine", lambda: Made(plugins=()))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json", str(tmp_path / "report.json")])
    assert stopped.value.code == 1
    assert json.loads((tmp_path / "report.json").read_text())["ready"] is False


def test_gsplat_is_found_where_it_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert Machine().gsplat_binary() is None
    built = tmp_path / "gsplat_cuda" / "gsplat_cuda.so"
    built.touch()
    assert Machine().gsplat_binary() == built


def test_digest_and_free_room_of_real_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 3_000_000)
    assert Machine().sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 3_000_000).hexdigest()
    assert Machine().size_bytes(tmp_path / "file") == 9_000_000
    assert Machine().size_bytes(tmp_path) is None
    assert Machine().free_disk_bytes(tmp_path / "not" / "made") == pytest.approx(
        Machine().free_disk_bytes(tmp_path), rel=0.05
    )
    assert Machine().writable(tmp_path / "not" / "made")
    assert not Machine().writable(tmp_path / "file")


def test_versions_are_compared_with_their_ranges() -> None:
    required = {package.name: package for package in Machine().requirements()}
    assert required["gsplat"].wanted == "==1.4.0"
    assert required["gsplat"].installed == "1.4.0"
    assert {name for name, package in required.items() if not package.fits} == set()


def test_a_plugin_that_breaks_is_found_by_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_method.py").write_text("import no_such_package")
    info = tmp_path / "other_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tests.methods]\nother = other_method:method\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # Groups of its own: nerfstudio, which takes long to import, is loaded by tests of the plugin.
    monkeypatch.setattr(machine_module, "METHODS", "tests.methods")
    monkeypatch.setattr(machine_module, "DATAPARSERS", "tests.dataparsers")
    (plugin,) = Machine().plugins()
    assert (plugin.name, plugin.package, plugin.module) == ("other", "other-method", "other_method")
    assert Machine().plugin_failures() == {
        "tests.methods other": "ModuleNotFoundError: No module named 'no_such_package'"
    }
