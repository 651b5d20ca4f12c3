"""Where an alignment stands, on disk, so that an interrupted one goes on from there."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.problem import Standing
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.atomic_files import remove_leftovers, write_bytes_atomically
from lora3d_ns.types import PairPredictions, Sim3, Views

_FORMAT = "lora3d alignment 1"


class AlignmentCheckpoint:
    """A file with the last standing of one alignment.

    Args:
        path: The file; replaced as a whole at every save, so it is never half written.
        views, predictions, settings, matches: What is aligned: a file of anything else is ignored and replaced.
    """

    def __init__(
        self,
        path: Path,
        views: Views,
        predictions: PairPredictions,
        settings: AlignmentSettings,
        matches: Matches | None,
    ) -> None:
        self.path = path
        self._key = _fingerprint(views, predictions, settings, matches)

    def save(self, now: Standing) -> None:
        """Writes the standing.

        Raises:
            StorageError: It cannot be written; `StorageFullError` if the disk is full.
        """
        state, edge = now.state, now.state.world_from_edge
        tensors = {
            "T_world_camera": state.T_world_camera,
            "focal_px": state.focal_px,
            "principal_point_px": state.principal_point_px,
            "edge_scale": edge.scale,
            "edge_rotation": edge.rotation,
            "edge_translation": edge.translation,
        }
        if now.static is not None:
            tensors |= {f"static {view}": static for view, static in enumerate(now.static)}
        told = {
            "stage": now.stage,
            "unit": now.unit,
            "dropped": [[i, j, reason] for (i, j), reason in now.dropped.items()],
            "match_objective": now.match_objective,
            "settled": now.settled,
        }
        encoded = save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            metadata={"key": self._key, "told": json.dumps(told)},
        )
        write_bytes_atomically(self.path, encoded)

    def resumed(self, begin: Standing) -> Standing:
        """What the file holds of this alignment; `begin` itself where it holds nothing of it."""
        remove_leftovers(self.path.parent)
        if not self.path.is_file():
            return begin
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return begin
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError:
            # Damaged: begin anew, the next save replaces it.
            return begin
        told = json.loads(metadata["told"])
        static = [saved[f"static {view}"] for view in range(len(begin.state.focal_px)) if f"static {view}" in saved]
        return Standing(
            stage=told["stage"],
            state=AlignmentState(
                T_world_camera=saved["T_world_camera"],
                focal_px=saved["focal_px"],
                principal_point_px=saved["principal_point_px"],
                world_from_edge=Sim3(
                    scale=saved["edge_scale"], rotation=saved["edge_rotation"], translation=saved["edge_translation"]
                ),
            ),
            unit=told["unit"],
            dropped={(i, j): reason for i, j, reason in told["dropped"]},
            match_objective=told["match_objective"],
            static=tuple(static) or None,
            settled=told["settled"],
        )


def _fingerprint(
    views: Views, predictions: PairPredictions, settings: AlignmentSettings, matches: Matches | None
) -> str:
    """A hash of everything that the result depends on."""
    settings = replace(settings, show_progress=False)
    told = [_FORMAT, views.names, views.source_sizes, views.lens_groups, predictions.graph.edges, asdict(settings)]
    told.append([asdict(affine) for affine in views.source_from_network])
    digest = hashlib.sha256(json.dumps(told, default=str).encode())
    # The photos themselves count where matches are looked for in them.
    for values in (*views.images, *views.masks, *views.known_K, *views.known_T_world_camera):
        _add(digest, values)
    for pair in predictions.pairs:
        for values in (pair.points_first, pair.points_second, pair.confidence_first, pair.confidence_second):
            _add(digest, values)
    for (i, j), found in sorted(matches.pairs.items()) if matches is not None else ():
        digest.update(f"matches {i} {j}".encode())
        _add(digest, found.pixels_first)
        _add(digest, found.pixels_second)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", values: Tensor | None) -> None:
    if values is None:
        digest.update(b"none")
        return
    values = values.detach().cpu().contiguous()
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.view(torch.uint8).numpy().data)
