"""What is there and what is missing on this machine, each with its fix, and what can be done with it as it is.

    findings = examine(Machine())
    findings.verdicts     # jobs, whether they can be done here, and how

Nothing is downloaded and nothing is asked of the network. A check that fails in a way nobody foresaw is a finding too:
it shows the error, and the rest goes on.
"""

from collections.abc import Callable
from pathlib import Path

from lora3d_ns.doctor.accelerator import compilers, device, gsplat
from lora3d_ns.doctor.findings import EVERYTHING, RECONSTRUCT, SPLATS, Finding, Findings, Verdict
from lora3d_ns.doctor.machine import Machine
from lora3d_ns.doctor.resources import bundled, disk, lpips, memory, network_weights
from lora3d_ns.doctor.software import export, packages, plugins, python, torch_itself


def examine(
    machine: Machine, *, output: Path = Path("outputs"), network: str = "512_dpt", thorough: bool = False
) -> Findings:
    """Looks at everything.

    Args:
        machine: Answers every question about the machine.
        output: Where results would go.
        network: The network for photos, by name or path.
        thorough: Whether nerfstudio is loaded with all its plugins, which takes as long as an ns-* command takes to
            start. Without, that is done only where there are plugins other than ours.
    """
    checks: dict[str, tuple[Callable[[], Finding], str]] = {
        "Python": (lambda: python(machine), EVERYTHING),
        "packages": (lambda: packages(machine), EVERYTHING),
        "torch": (lambda: torch_itself(machine), EVERYTHING),
        "CUDA device": (lambda: device(machine, machine.torch()), "the GPU"),
        "compilers": (lambda: compilers(machine, machine.torch()), "building gsplat"),
        "gsplat": (lambda: gsplat(machine, machine.torch()), "splats on the GPU"),
        "network": (lambda: network_weights(machine, network), "photos"),
        "bundled network": (lambda: bundled(machine), "`lora3d demo`"),
        "LPIPS weights": (lambda: lpips(machine), "LPIPS among the metrics"),
        "disk": (lambda: disk(machine, output, network), EVERYTHING),
        "memory": (lambda: memory(machine), EVERYTHING),
        "nerfstudio": (lambda: plugins(machine, thorough=thorough), "all ns-* commands"),
        "ns-export": (lambda: export(machine), "`ns-export`"),
    }
    findings = {name: _guarded(name, check, needed_for) for name, (check, needed_for) in checks.items()}
    return Findings(findings=tuple(findings.values()), verdicts=_verdicts(findings))


def _guarded(name: str, check: Callable[[], Finding], needed_for: str) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (an odd machine must not keep the other findings from the user)
        return Finding(
            name=name,
            # Without torch there is nothing; of the rest we only do not know.
            status="missing" if name in ("torch", "packages") else "limited",
            detail=f"could not be examined: {type(error).__name__}: {error}",
            fix="See what the error names; if it makes no sense, report it with the file that --json writes",
            needed_for=needed_for,
        )


def _verdicts(findings: dict[str, Finding]) -> tuple[Verdict, ...]:
    base = ("Python", "packages", "torch", "disk")
    on_gpu = findings["CUDA device"].status == "ok"
    device = "on the GPU" if on_gpu else "on the CPU"
    fetched = "" if findings["network"].status == "ok" else "; its weights are fetched first"
    if not on_gpu:
        splats = "on the CPU, fewer and smaller"
    elif findings["gsplat"].status == "ok":
        splats = "on the GPU with gsplat"
    elif findings["gsplat"].status == "limited":
        splats = "on the GPU, once gsplat is built"
    else:
        splats = "on the CPU (`--machine.device-type cpu`), until gsplat can be built for the GPU"

    def verdict(job: str, needs: tuple[str, ...], how: str) -> Verdict:
        against = [name for name in needs if findings[name].status == "missing"]
        return Verdict(job=job, ready=not against, how=f"missing: {', '.join(against)}" if against else how)

    lpips = findings["LPIPS weights"]
    return (
        verdict("the demo: `lora3d demo`", (*base, "bundled network"), "offline, on the CPU"),
        verdict(RECONSTRUCT, (*base, "network"), device + fetched),
        verdict(SPLATS, (*base, "network", "nerfstudio"), splats),
        verdict(
            "metrics of held-out photos: `ns-eval`",
            (*base, "nerfstudio"),
            "PSNR, SSIM, LPIPS" if lpips.status == "ok" else "PSNR and SSIM; LPIPS once its weights are there",
        ),
        verdict("files for other programs: `ns-export`", (*base, "nerfstudio", "ns-export"), "open3d can be loaded"),
    )
