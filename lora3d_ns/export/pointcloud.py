"""A scene's points as files that any viewer opens: PLY with weights, GLB with the cameras."""

import io
from pathlib import Path

import numpy as np
import torch

from lora3d_ns.atomic_files import write_bytes_atomically
from lora3d_ns.errors import MissingPackageError
from lora3d_ns.types import Scene

_FRUSTUM_DEPTH_SHARE = 0.08


def write_ply(scene: Scene, path: Path, *, with_weights: bool = True) -> None:
    """Writes the cloud as binary PLY: x, y, z, red, green, blue, and with weights also `weight` and `view`.

    Raises:
        StorageError: The file cannot be written.
    """
    from plyfile import PlyData, PlyElement

    fields = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    if with_weights:
        fields += [("weight", "f4"), ("view", "i4")]
    vertices = np.empty(len(scene.points), dtype=fields)
    for axis, name in enumerate("xyz"):
        vertices[name] = scene.points[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = scene.colors[:, channel].numpy()
    if with_weights:
        vertices["weight"], vertices["view"] = scene.point_weights.numpy(), scene.point_views.numpy()
    content = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(content)
    write_bytes_atomically(path, content.getvalue())


def write_glb(scene: Scene, path: Path) -> None:
    """Writes cloud and camera frusta as binary glTF, whose y axis points up and whose cameras look along -z.

    Raises:
        MissingPackageError: trimesh is not installed.
        StorageError: The file cannot be written.
    """
    try:
        import trimesh
    except ImportError as error:
        raise MissingPackageError("GLB files need trimesh", way_out="Run `pip install trimesh`") from error

    # glTF's world has y up and z towards the viewer: ours, turned about x by half a turn.
    turned = np.diag([1.0, -1.0, -1.0])
    opaque = np.full((len(scene.points), 1), 255, dtype=np.uint8)
    colors = np.hstack([scene.colors.numpy(), opaque])
    made = trimesh.Scene()
    made.add_geometry(trimesh.PointCloud(scene.points.numpy() @ turned.T, colors=colors), geom_name="points")
    for view, name in enumerate(scene.names):
        lines = trimesh.load_path(_frustum(scene, view) @ turned.T)
        made.add_geometry(lines, geom_name=f"camera {name}", node_name=f"camera {name}")
    content = made.export(file_type="glb")
    assert isinstance(content, bytes)
    write_bytes_atomically(path, content)


def _frustum(scene: Scene, view: int) -> np.ndarray:
    """The eight edges of a camera's pyramid as segments in the world, (8, 2, 3)."""
    width, height = scene.cameras.sizes[view]
    T = scene.cameras.T_world_camera[view].double()
    own = scene.point_views == view
    points = scene.points[own] if bool(own.any()) else scene.points
    depth = _FRUSTUM_DEPTH_SHARE * float((points.double() - T[:3, 3]).norm(dim=1).median())
    corners = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=torch.float64)
    rays = corners @ torch.linalg.inv(scene.cameras.K[view].double()).T * depth
    world = (rays @ T[:3, :3].T + T[:3, 3]).numpy()
    centre = T[:3, 3].numpy()
    edges = [(centre, corner) for corner in world] + [(world[k], world[(k + 1) % 4]) for k in range(4)]
    return np.array(edges)
