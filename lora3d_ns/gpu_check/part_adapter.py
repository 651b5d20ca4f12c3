"""An adapter that was learnt on the GPU: its files know nothing of a GPU, and what it says there it says on the CPU."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora3d_ns.adapter.finetune import FineTuned, finetune
from lora3d_ns.adapter.finetune_settings import FineTuneSettings
from lora3d_ns.adapter.lora import Adapter, load_adapter, save_adapter, with_adapter
from lora3d_ns.errors import AdapterError
from lora3d_ns.gpu_check.common import independent
from lora3d_ns.gpu_check.part_network import largest_difference
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import BUNDLED_NETWORK, load_network, network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.pseudo_labels import labels_from_depths
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene

SAME_GOAL = Goal(limit=1e-3)
"""Both devices compute in float32, in another order."""
NONE_GOAL = Goal(limit=0.0)

_LOAD = """
import sys
import torch
from lora3d_ns.adapter.lora import load_adapter
assert not torch.cuda.is_available()
adapter = load_adapter(sys.argv[1])
assert all(tensor.device.type == "cpu" for tensor in adapter.tensors.values())
"""


def run(settings: PartSettings) -> Iterator[Row]:
    """Learns briefly with the bundled network on the demo's room, saves, loads, and compares predictions."""
    device = torch.device(settings.device)
    on_cpu, on_device = (load_network(BUNDLED_NETWORK, device=where) for where in ("cpu", device))
    room = _room(settings, on_cpu)
    begun = time.perf_counter()
    tuned = _learnt(settings, room, on_device)
    seconds = time.perf_counter() - begun
    steps = f"{len(tuned.losses)} steps, {len(room.views)} photos, on {settings.device}"
    yield Row(name="learning", value=seconds, unit="s", note=f"{steps}; loss {tuned.losses[0]:.3f} to "
              f"{tuned.losses[-1]:.3f}", failed=not tuned.losses[-1] < tuned.losses[0])  # fmt: skip
    folder = settings.folder / "adapter"
    save_adapter(tuned.adapter, folder)
    yield from independent("adapter's tensors", lambda: [elsewhere(tuned.adapter)])
    yield from independent("loading without a GPU", lambda: [_loaded_without_a_gpu(folder)])
    yield from independent("fingerprint", lambda: [accepted(folder, on_cpu)])
    yield from independent("predictions", lambda: _predictions(room, folder, on_cpu, on_device))


def elsewhere(adapter: Adapter) -> Row:
    """How many of an adapter's tensors are not plain float32 in host memory."""
    wrong = [name for name, tensor in adapter.tensors.items()
             if tensor.device.type != "cpu" or tensor.dtype != torch.float32]  # fmt: skip
    note = f"of {len(adapter.tensors)}" + (f": {wrong[0]}, ..." if wrong else "")
    return Row(name="adapter's tensors that are not float32 in host memory", value=float(len(wrong)), goal=NONE_GOAL,
               note=note)  # fmt: skip


def accepted(folder: Path, network: Dust3r) -> Row:
    """Whether the network on the CPU is the base that the files name."""
    name = "fingerprint of the base, on the CPU"
    try:
        adapter = load_adapter(folder, network, fingerprint=network_fingerprint(network))
    except AdapterError as error:
        return Row(name=name, note=str(error), failed=True)
    return Row(name=name, note=f"accepted: {adapter.base_fingerprint[:12]}")


def _room(settings: PartSettings, network: Dust3r) -> RoomPhotos:
    """Photos of the demo's room as the network sees them, with their truth."""
    width, height = (96, 72) if settings.tiny else (512, 384)
    photographed = demo_room(photo_count=2 if settings.tiny else 6, size=(width, height))
    photos = settings.folder / "photos"
    write_scene(photos, photographed)
    views = load_views(photos, PhotoSettings(size=network.config.image_size, patch_size=network.patch_size))
    return truth_for_views(views, photographed)


def _learnt(settings: PartSettings, room: RoomPhotos, network: Dust3r) -> FineTuned:
    graph = build_pair_graph(CompleteGraph(), len(room.views))
    labels = labels_from_depths(
        room.views, graph, T_world_camera=room.cameras.T_world_camera, K=room.cameras.K, depths=room.depths_m
    )
    how = FineTuneSettings(
        epochs=3, held_out_share=0.0, precision="float32", seed=settings.seed, show_progress=False,
        pairs_per_step=2 if settings.tiny else 6,
    )  # fmt: skip
    return finetune(room.views, labels, network, how, base_name=BUNDLED_NETWORK)


def _loaded_without_a_gpu(folder: Path) -> Row:
    """In a process that sees no device."""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)], env=hidden, capture_output=True, text=True, check=False
    )
    said = done.stderr.strip().splitlines()[-1:] or [""]
    return Row(name="loading where no GPU is seen", note=said[0] or "works", failed=done.returncode != 0)


def _predictions(room: RoomPhotos, folder: Path, on_cpu: Dust3r, on_device: Dust3r) -> Iterator[Row]:
    """How far both devices are apart with the adapter, and how much it changes at all."""
    graph = build_pair_graph(CompleteGraph(), len(room.views))
    how = PredictionSettings(precision="float32", show_progress=False)
    with _without_tf32():
        adapted = [
            predict_pairs(room.views, graph, with_adapter(network, load_adapter(folder)), how)
            for network in (on_cpu, on_device)
        ]
        plain = predict_pairs(room.views, graph, on_cpu, how)
    name = f"predictions with the adapter, CPU and {on_device.device.type}"
    difference = largest_difference(adapted[1], adapted[0])
    yield Row(name=name, value=difference, goal=SAME_GOAL,
              note=f"float32 without TF32, largest difference over the largest number, {len(graph)} pairs")  # fmt: skip
    change = largest_difference(adapted[0], plain)
    # An adapter that does nothing would be the same everywhere.
    yield Row(name="what the adapter changes", value=change, goal=Goal(limit=10 * SAME_GOAL.limit, sense="at least"),
              note="the same measure, against the network without it")  # fmt: skip


@contextmanager
def _without_tf32() -> Iterator[None]:
    """cuDNN uses TF32 unless told otherwise, which has ten bits of mantissa; some machines tell cuBLAS so too."""
    # The type checker sees modules in them.
    cudnn: Any = torch.backends.cudnn
    cublas: Any = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    try:
        cudnn.allow_tf32 = cublas.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before
