"""Cameras that were refined after the scene was made: those of a training of splats."""

from pathlib import Path

import torch

from lora3d_ns.errors import InvalidDataError, KnownCameraError
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.types import Cameras, Scene

_SAME_WORLD = 0.1
"""Refining moves cameras by much less than this share of the depth in front of them (measured: by 0.002 of it)."""


def refined_cameras(scene: Scene, path: Path) -> Cameras:
    """The cameras of all photos of a scene from a file in the scene's own world.

    Args:
        scene: Whose photos; its own cameras are only compared with.
        path: `refined_cameras.json`, the folder of the training that left it, or `cameras.json` of a scene.

    Raises:
        KnownCameraError: The file cannot be read, or is of a kind that may mean photos as stored.
        InvalidDataError: It lacks a photo of the scene, or belongs to other photos or another world.
    """
    known = read_known_cameras(path)
    if known.pixels != "upright":
        raise KnownCameraError(
            "these may be cameras of photos as they are stored, not of upright ones",
            way_out="Give refined_cameras.json, or the folder of the training that left it",
            path=known.path,
        )
    by_name = {camera.entry: camera for camera in known.cameras}
    poses, intrinsics = [], []
    for name, size in zip(scene.names, scene.cameras.sizes, strict=True):
        camera = by_name.get(name)
        if camera is None or camera.K is None or camera.T_world_camera is None:
            raise _other_scene(f"{known.path} holds no whole camera of the scene's photo {name}")
        if camera.size not in (None, size):
            raise _other_scene(f"{known.path}: the photo {name} has not the {size[0]}x{size[1]} pixels of the scene's")
        poses.append(camera.T_world_camera)
        intrinsics.append(camera.K)
    refined = Cameras(T_world_camera=torch.stack(poses), K=torch.stack(intrinsics), sizes=scene.cameras.sizes)
    moved = (refined.T_world_camera - scene.cameras.T_world_camera.double())[:, :3, 3].norm(dim=1).median()
    centres = scene.cameras.T_world_camera[:, :3, 3]
    distance = (scene.points - centres[scene.point_views.long()]).norm(dim=1).median()
    if float(moved) > _SAME_WORLD * float(distance):
        raise _other_scene(
            f"the cameras in {known.path} are {float(moved / distance):.0%} of the scene's depth away from its own"
        )
    return refined


def _other_scene(problem: str) -> InvalidDataError:
    return InvalidDataError(problem, way_out="Give the training that was made from this very scene")
