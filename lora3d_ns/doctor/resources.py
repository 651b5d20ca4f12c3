"""Weights of networks, room on disks, and memory."""

import dataclasses
import functools
import math
from pathlib import Path

from lora3d_ns.doctor.accelerator import LEARNING_BYTES, NETWORK_BYTES
from lora3d_ns.doctor.findings import EVERYTHING, GIB, Finding
from lora3d_ns.doctor.machine import ALEXNET_FILE, Machine

PAIR_BYTES = 2 * 4 * 4 * 512 * 384
"""Two maps of points and confidences of 512x384 in float32, as pair prediction keeps them."""
RESULTS_BYTES = 2 * GIB
"""Ten photos: cached pair predictions 0.5 GiB, scene, checkpoints of the splats; and as much again for a second run."""
BUILD_BYTES = GIB


def network_weights(machine: Machine, name: str) -> Finding:
    """Whether the network for photos lies on this machine, under a name or a path; its content is not read."""
    from lora3d_ns.network.checkpoint_hub import BUNDLED_NETWORK, CONFIG_FILE, WEIGHTS_FILE, hub_name

    finding = functools.partial(Finding, name="network", needed_for="cameras, clouds and splats from photos")
    if name == BUNDLED_NETWORK:
        return dataclasses.replace(bundled(machine), name="network")
    repository = hub_name(name)
    if repository is None:
        path = Path(name).expanduser()
        files = [path] if path.suffix in (".pth", ".safetensors") else [path / CONFIG_FILE, path / WEIGHTS_FILE]
        absent = [file for file in files if not machine.exists(file)]
        if absent:
            return finding(
                status="missing",
                detail=f"{', '.join(map(str, absent))} is not there",
                fix=f"Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, a file, or the name of an official network",
            )
        return finding(status="ok", detail=f"{path} (the licence is that of whoever made it)")
    licence = "weights (c) Naver, CC BY-NC-SA 4.0: no commercial use"
    cached = [machine.cached_by_hub(repository, file) for file in (CONFIG_FILE, WEIGHTS_FILE)]
    if all(file is not None for file in cached):
        return finding(status="ok", detail=f"{repository} is in {machine.hub_cache()}; {licence}")
    by_hand = (
        f"Or fetch {CONFIG_FILE} and {WEIGHTS_FILE} of huggingface.co/{repository} elsewhere, put both into one "
        "folder, and give its path as --network"
    )
    if machine.environment("HF_HUB_OFFLINE") not in (None, "0"):
        return finding(
            status="missing",
            detail=f"{repository} is not in {machine.hub_cache()}, and HF_HUB_OFFLINE forbids to fetch it; {licence}",
            fix=f"Unset HF_HUB_OFFLINE. {by_hand}",
        )
    return finding(
        status="limited",
        detail=f"{repository} is not in {machine.hub_cache()}: it is fetched on first use, 2.1 GiB; {licence}",
        fix=f"To have it beforehand: hf download {repository} {CONFIG_FILE} {WEIGHTS_FILE}. {by_hand}",
    )


def bundled(machine: Machine) -> Finding:
    """The small network of this package."""
    file = machine.bundled_weights()
    size = machine.size_bytes(file)
    return Finding(
        name="bundled network",
        status="missing" if size is None else "ok",
        detail=f"{file} is not there" if size is None else f"{size / 2**20:.1f} MiB, Apache-2.0; for rooms, not photos",
        fix="Reinstall lora3d-ns" if size is None else "",
        needed_for="`lora3d demo`, which needs nothing from outside",
    )


def lpips(machine: Machine) -> Finding:
    """AlexNet, which LPIPS is made of, where torchvision looks for it."""
    finding = functools.partial(Finding, name="LPIPS weights", needed_for="LPIPS; without, it is left out of metrics")
    file = machine.alexnet()
    size = machine.size_bytes(file)
    fetch = "python -c 'import torchvision; torchvision.models.alexnet(weights=\"DEFAULT\")'"
    if size is None:
        return finding(
            status="limited",
            detail=f"{file} is not there",
            fix=f"Once, with internet: {fetch}. Or run that on another machine and copy its {ALEXNET_FILE} (233 MiB) "
            f"into {file.parent}",
        )
    wanted = ALEXNET_FILE.removesuffix(".pth").rsplit("-", 1)[1]
    if not machine.sha256(file).startswith(wanted):
        return finding(
            status="limited",
            detail=f"{file} is damaged: {size} bytes whose SHA-256 does not begin with {wanted}",
            fix=f"Delete it; then, with internet: {fetch}",
        )
    return finding(status="ok", detail=f"AlexNet in {file}")


def disk(machine: Machine, output: Path, network: str) -> Finding:
    """Room where results, weights and gsplat's build go."""
    wanted = [("results", output, RESULTS_BYTES)]
    if network_weights(machine, network).status == "limited":
        wanted.append(("the network's weights", machine.hub_cache(), NETWORK_BYTES))
    if machine.torch().gpus and machine.gsplat_binary() is None:
        wanted.append(("gsplat's build", machine.gsplat_folder(), BUILD_BYTES))
    details, fixes, status = [], [], "ok"
    moves = {
        "results": "choose another with --output",
        "the network's weights": "set HF_HOME to a folder on another disk",
        "gsplat's build": "set TORCH_EXTENSIONS_DIR to a folder on another disk",
    }
    for what, folder, needed in wanted:
        free = machine.free_disk_bytes(folder)
        details.append(f"{free / GIB:.1f} GiB free for {what} in {folder}")
        if not machine.writable(folder):
            status = "missing"
            details[-1] += ", where you may not write"
            fixes.append(f"Make {folder} writable, or {moves[what]}")
        elif free < needed:
            # Small jobs still fit where results go; weights fit or do not.
            status = "missing" if status == "missing" or what != "results" or free < needed / 10 else "limited"
            details[-1] += f", {needed / GIB:.1f} wanted"
            fixes.append(f"Free some room in {folder}, or {moves[what]}")
    return Finding(name="disk", status=status, detail="; ".join(details), fix=". ".join(fixes), needed_for=EVERYTHING)


def photos_at_most(available_bytes: int) -> int:
    """Photos of 512x384 whose pairs, all with all, fit into memory: `n (n - 1)` pairs in nine tenths of it."""
    pairs = 0.9 * available_bytes / PAIR_BYTES
    return math.floor(0.5 + math.sqrt(0.25 + pairs))


def memory(machine: Machine) -> Finding:
    """Host memory, and how many photos it is enough for."""
    host = machine.memory()
    swap = f"{host.swap / GIB:.1f} GiB of swap" if host.swap else "no swap"
    needed = NETWORK_BYTES + LEARNING_BYTES
    few = host.available < needed
    return Finding(
        name="memory",
        status="limited" if few else "ok",
        detail=f"{host.available / GIB:.1f} of {host.total / GIB:.1f} GiB free, {swap}; "
        + (
            f"the official network takes {NETWORK_BYTES / GIB:.1f} GiB and to learn {LEARNING_BYTES / GIB:.1f} more"
            if few
            else f"{photos_at_most(host.available - NETWORK_BYTES)} photos all with all beside the official network"
        ),
        fix="Close other programs; or use `--arm robust`, which does not learn, or `--network 224_linear`"
        if few
        else "",
        needed_for="the official network, and many photos",
    )
