"""Python, packages, and nerfstudio with its plugins."""

import functools

from lora3d_ns.doctor.findings import EVERYTHING, Finding
from lora3d_ns.doctor.machine import DATAPARSERS, METHODS, Machine


def python(machine: Machine) -> Finding:
    """The interpreter."""
    version = machine.python()
    fits = (3, 10) <= version[:2] <= (3, 12)
    return Finding(
        name="Python",
        status="ok" if fits else "missing",
        detail=".".join(map(str, version)),
        fix="" if fits else "Make an environment with Python 3.10, 3.11 or 3.12: nerfstudio has no other",
        needed_for=EVERYTHING,
    )


def packages(machine: Machine) -> Finding:
    """Versions of what this package requires."""
    required = machine.requirements()
    wrong = [package for package in required if not package.fits]
    shown = ("nerfstudio", "gsplat", "viser", "peft", "numba")
    versions = ", ".join(f"{name} {machine.version(name) or 'missing'}" for name in shown)
    if not wrong:
        return Finding(
            name="packages", status="ok", detail=f"{versions}; all {len(required)} fit", needed_for=EVERYTHING
        )
    named = ", ".join(f"{package.name} {package.installed or 'missing'} (needs {package.wanted})" for package in wrong)
    arguments = " ".join(f"'{package.name}{package.wanted}'" for package in wrong)
    return Finding(
        name="packages",
        status="missing",
        detail=f"do not fit: {named}; {versions}",
        fix=f"pip install {arguments}",
        needed_for=EVERYTHING,
    )


def torch_itself(machine: Machine) -> Finding:
    """Whether torch can be imported at all."""
    torch = machine.torch()
    built = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "the CPU"
    return Finding(name="torch", status="ok", detail=f"{torch.version}, built for {built}", needed_for=EVERYTHING)


def plugins(machine: Machine, *, thorough: bool) -> Finding:
    """Methods and dataparsers that nerfstudio will load; loaded for a trial if some are not ours, or if `thorough`."""
    finding = functools.partial(Finding, name="nerfstudio", needed_for="all ns-* commands: one broken plugin ends them")
    registered = machine.plugins()
    ours = {(METHODS, "lora3d-splat"), (DATAPARSERS, "lora3d")}
    absent = sorted(name for _, name in ours - {(plugin.group, plugin.name) for plugin in registered})
    if absent:
        return finding(
            status="missing",
            detail=f"not registered: {', '.join(absent)}",
            fix="Install the package itself, not only its files: pip install --no-deps --editable FOLDER",
        )
    others = [plugin for plugin in registered if (plugin.group, plugin.name) not in ours]
    listed = ", ".join(f"{plugin.name} of {plugin.package}" for plugin in others) or "no other plugins"
    if not others and not thorough:
        return finding(status="ok", detail=f"lora3d-splat and lora3d are registered; {listed}")
    failures = machine.plugin_failures()
    if not failures:
        return finding(status="ok", detail=f"lora3d-splat and lora3d load; {listed}")
    packages = {f"{plugin.group} {plugin.name}": plugin.package for plugin in registered}
    foreign = sorted({packages[point] for point in failures} - {"lora3d-ns"})
    return finding(
        status="missing",
        detail="; ".join(f"{point} of {packages[point]}: {error}" for point, error in sorted(failures.items())),
        fix=f"Update or remove what is broken: pip uninstall {' '.join(foreign)}"
        if foreign
        else "Install what the error names",
    )


def export(machine: Machine) -> Finding:
    """What open3d needs of the system, which `ns-export` imports."""
    library = machine.system_library("usb-1.0")
    return Finding(
        name="ns-export",
        status="missing" if library is None else "ok",
        detail="open3d, which it imports, needs the system's libusb-1.0, which is not there"
        if library is None
        else f"{library} is there, which open3d needs",
        fix="apt-get install libusb-1.0-0" if library is None else "",
        needed_for="`ns-export`, and scenes of others whose transforms.json names a ply file",
    )
