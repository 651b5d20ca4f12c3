"""What `lora3d calibrate` and `lora3d reconstruct` do, for whoever wants it without a command line."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from lora3d_ns import __version__
from lora3d_ns.adapter.lora import Adapter, load_adapter, require_adapter_folder, save_adapter
from lora3d_ns.atomic_files import write_text_atomically
from lora3d_ns.errors import AdapterRefusedError, SettingsError
from lora3d_ns.images import PhotoSettings, chosen_photos, load_views
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.reconstruct import Calibration, Reconstruction, ReconstructSettings, reconstruct, self_calibrate
from lora3d_ns.scene_details import scene_details
from lora3d_ns.scene_io.scenes import require_scene_folder, save_scene
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.scene_picture import draw_scene
from lora3d_ns.types import Views

logger = logging.getLogger(__name__)

CACHE_FOLDER = ".lora3d-cache"
"""Beside the output, where nothing else was asked for; `calibrate` and `reconstruct` share it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What photos to take, and with what network.

    Attributes:
        photos: Folder of photos.
        network: By name or path, see `load_network`.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        known_cameras: File or folder with intrinsics or poses of some photos, see `PhotoSettings`.
        only_listed: Whether to take only the photos that it lists.
        every, at_most: Which of the photos, see `PhotoSettings`.
        cache: Folder for results of stages; None for the one beside the output.
    """

    photos: Path
    network: str
    device: str = "auto"
    known_cameras: Path | None = None
    only_listed: bool = False
    every: int = 1
    at_most: int | None = None
    cache: Path | None = None


def run_calibrate(
    source: Source, output: Path, settings: ReconstructSettings, *, keep_refused: bool = False
) -> tuple[Calibration, dict[str, object]]:
    """Makes an adapter from photos and writes it.

    Args:
        source: Photos and network.
        output: Folder for the adapter, in peft's format.
        settings: Of all stages.
        keep_refused: Whether an adapter that the gate refuses is written all the same.

    Returns:
        The calibration and its report in plain values.

    Raises:
        AdapterRefusedError: The gate refused the adapter; nothing was written.
        Lora3dError: Photos, network or a stage's own errors.
    """
    require_adapter_folder(output)
    views, network = open_source(source)
    calibration = self_calibrate(
        views, network, settings, base_name=source.network, cache=StageCache(_cache_folder(source, output))
    )
    adapter = calibration.adapter
    if adapter is None:
        assert calibration.gate is not None
        if not keep_refused:
            raise AdapterRefusedError(
                f"the gate refused the adapter ({calibration.gate.reason}), nothing was written",
                way_out="Run `lora3d reconstruct`, which goes on without it, or write it with --keep-refused",
            )
        adapter = calibration.refused
    assert adapter is not None
    save_adapter(adapter, output)
    return calibration, calibration_report(calibration, adapter)


def run_reconstruct(
    source: Source, output: Path, settings: ReconstructSettings, *, adapter: Path | None = None
) -> tuple[Reconstruction, dict[str, object]]:
    """Makes a scene from photos and writes it, with a picture of it.

    Args:
        source: Photos and network.
        output: Folder for the scene.
        settings: Of all stages.
        adapter: Folder of an adapter that was made before: nothing is learnt then.

    Returns:
        The reconstruction and its report in plain values.

    Raises:
        Lora3dError: Photos, network, adapter or a stage's own errors.
    """
    require_scene_folder(output)
    given = None if adapter is None else load_adapter(adapter)
    views, network = open_source(source)
    made = reconstruct(
        views,
        network,
        settings,
        base_name=source.network,
        adapter=given,
        cache=StageCache(_cache_folder(source, output)),
    )
    title = f"{source.photos.name}: {len(views)} photos, {len(made.scene.points)} points, arm {settings.arm}"
    save_scene(
        made.scene,
        output,
        draw=lambda path: draw_scene(made.scene, path, title=title),
        details=scene_details(views, made),
    )
    return made, reconstruction_report(made)


def calibration_report(calibration: Calibration, adapter: Adapter) -> dict[str, object]:
    """What a calibration came to, in plain values."""
    tuned, gate = calibration.finetuned, calibration.gate
    return {
        "version": __version__,
        "adapter": {"parameters": adapter.parameter_count, "bytes": adapter.nbytes},
        "gate": None if gate is None else dataclasses.asdict(gate),
        "labels": {
            "cutoff": calibration.labels.cutoff,
            "coverage": calibration.labels.coverage.tolist(),
        },
        "finetune": {
            "steps": len(tuned.losses),
            "best_epoch": tuned.best_epoch,
            "held_out_errors": list(tuned.held_out_errors),
            "rollbacks": tuned.rollbacks,
        },
        "warnings": list(calibration.before.aligned.diagnosis.warnings),
        "seconds": dict(calibration.seconds),
    }


def reconstruction_report(made: Reconstruction) -> dict[str, object]:
    """What a reconstruction came to, in plain values."""
    return {
        "points": len(made.scene.points),
        "photos": {
            name: {"K": K.tolist(), "T_world_camera": T_world_camera.tolist()}
            for name, K, T_world_camera in zip(
                made.scene.names, made.scene.cameras.K, made.scene.cameras.T_world_camera, strict=True
            )
        },
        **made.scene.provenance,
    }


def write_report(report: dict[str, object], path: Path) -> None:
    """Writes a report as JSON, all at once or not at all."""
    write_text_atomically(path, json.dumps(report, indent=1) + "\n")


def photo_settings(source: Source, *, size: int = 512, patch_size: int = 16, at_least: int = 1) -> PhotoSettings:
    """How a source's photos are read, for a network of this size and patch."""
    return PhotoSettings(
        size=size,
        patch_size=patch_size,
        known_cameras=source.known_cameras,
        only_listed=source.only_listed,
        every=source.every,
        at_most=source.at_most,
        at_least=at_least,
    )


def open_source(source: Source, *, at_least: int = 2) -> tuple[Views, Dust3r]:
    """Photos and network: whatever is wrong with either shows before any long work.

    Raises:
        SettingsError: There is no such device.
        PhotoError: The photos are fewer than `at_least`, or one cannot be read.
        CheckpointError: The network cannot be had.
    """
    import torch

    # The folder is looked at first: weights may have to be fetched.
    chosen_photos(source.photos, photo_settings(source, at_least=at_least))

    device = source.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device", way_out="Use --device cpu")
    network = load_network(source.network, device=device)
    views = load_views(
        source.photos,
        photo_settings(source, size=network.config.image_size, patch_size=network.patch_size, at_least=at_least),
    )
    return views, network


def _cache_folder(source: Source, output: Path) -> Path:
    return output.resolve().parent / CACHE_FOLDER if source.cache is None else source.cache
