"""The solver's state on disk, so that an interrupted alignment goes on where it was."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.types import PairPredictions, Sim3, Views


class AlignmentCheckpoint:
    """A file with the last state of one alignment.

    Args:
        path: The file; replaced as a whole at every save, so it is never half written.
        views, predictions, settings: What is being aligned: a file of anything else is ignored and replaced.
    """

    def __init__(self, path: Path, views: Views, predictions: PairPredictions, settings: AlignmentSettings) -> None:
        self.path = path
        self._edges = predictions.graph.edges
        self._key = _fingerprint(views, predictions, settings)

    def save(self, state: AlignmentState, dropped: Mapping[tuple[int, int], str]) -> None:
        """Writes the state."""
        edge = state.world_from_edge
        tensors = {
            "T_world_camera": state.T_world_camera,
            "focal_px": state.focal_px,
            "principal_point_px": state.principal_point_px,
            "edge_scale": edge.scale,
            "edge_rotation": edge.rotation,
            "edge_translation": edge.translation,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        left_out = [[i, j, reason] for (i, j), reason in dropped.items()]
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            beside,
            metadata={"key": self._key, "dropped": json.dumps(left_out)},
        )
        os.replace(beside, self.path)

    def resumed(
        self, state: AlignmentState, dropped: dict[tuple[int, int], str]
    ) -> tuple[AlignmentState, dict[tuple[int, int], str]]:
        """What the file holds of this alignment, or what was given where it holds nothing of it."""
        if not self.path.is_file():
            return state, dropped
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return state, dropped
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError:
            # Damaged: begin anew, the next save replaces it.
            return state, dropped
        left_out = {(int(i), int(j)): str(reason) for i, j, reason in json.loads(metadata["dropped"])}
        return (
            AlignmentState(
                T_world_camera=saved["T_world_camera"],
                focal_px=saved["focal_px"],
                principal_point_px=saved["principal_point_px"],
                world_from_edge=Sim3(
                    scale=saved["edge_scale"], rotation=saved["edge_rotation"], translation=saved["edge_translation"]
                ),
            ),
            left_out,
        )


def _fingerprint(views: Views, predictions: PairPredictions, settings: AlignmentSettings) -> str:
    """A hash of the names, graph and settings, and of sums that any changed prediction changes."""
    told = json.dumps([views.names, views.shapes, predictions.graph.edges, asdict(settings)], default=str)
    digest = hashlib.sha256(told.encode())
    for pair in predictions.pairs:
        for values in (pair.points_first, pair.points_second, pair.confidence_first, pair.confidence_second):
            total = values.sum(dtype=torch.float64)
            digest.update(total.numpy().tobytes())
    for known in (*views.known_K, *views.known_T_world_camera):
        digest.update(b"-" if known is None else known.double().numpy().tobytes())
    return digest.hexdigest()
