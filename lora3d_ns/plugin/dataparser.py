"""nerfstudio's view of a scene: photos without poses in, cameras and a weighted point cloud out.

Works with every method: `ns-train splatfacto lora3d --data images/`. The scene is made once and found again by all
later commands. World and unit are the scene's own; only the cameras' axes are written as OpenGL does.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from torch import Tensor

from lora3d_ns.conventions import opencv_from_opengl, opengl_from_opencv

if TYPE_CHECKING:
    from lora3d_ns.commands import Source
    from lora3d_ns.photo_scene import PhotoScene, ScenePhoto
    from lora3d_ns.reconstruct import ReconstructSettings
    from lora3d_ns.splits import SplitSettings

SCENE_FOLDER_PREFIX = "lora3d-scene-"


@dataclass
class Lora3dDataParserConfig(DataParserConfig):
    """Photos without poses: cameras and a point cloud by self-calibrated DUSt3R."""

    _target: type = field(default_factory=lambda: Lora3dDataParser)
    data: Path = Path()
    """Folder of photos; masks beside them are found and respected."""
    network: str = "512_dpt"
    """Network by name or path: 512_dpt, 512_linear, 224_linear (official), rooms (bundled, for rooms only)."""
    arm: Literal["self_calibrated", "robust", "pretrained"] = "self_calibrated"
    """The whole method; the network as it is with our alignment; the same with DUSt3R's own objective."""
    scene: Path | None = None
    """Folder of the finished scene: taken from there, or made there. None: one beside the output, named by content."""
    split: Literal["interval", "fraction", "filename", "all"] = "interval"
    """Which photos are held out, seen by nothing but the evaluation; from three photos on at least one, see
    lora3d_ns.splits."""
    eval_interval: int = 8
    """Of the split `interval`."""
    train_fraction: float = 0.9
    """Of the split `fraction`."""
    known_cameras: Path | None = None
    """What is known already: a COLMAP model, a transforms.json, or a JSON file of ours with intrinsics or poses."""
    only_listed: bool = False
    """Take the photos that `known_cameras` lists, and no others."""
    every: int = 1
    """Take each n-th photo only (frames of a video)."""
    at_most: int | None = None
    """Take this many photos at most, evenly spread."""
    graph: Literal["complete", "window", "retrieval"] = "complete"
    """Pairs of photos that the network looks at: all; neighbours in time (video); the most alike (many photos)."""
    matches: Literal["auto", "off"] = "auto"
    """Whether 2D correspondences between the photos correct the cameras."""
    rounds: int = 1
    """How often labels are made and learnt; a second round goes on with what the first has made better."""
    seed: int = 0
    """Of everything random in the calibration."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; `auto` takes CUDA where there is one."""
    cache: Path | None = None
    """Folder for results of stages, so that interrupted work goes on; None for one beside the scene."""


class Lora3dDataParser(DataParser):
    """Makes or loads the scene when it is first asked for; `train` and evaluation splits share it."""

    config: Lora3dDataParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: Lora3dDataParserConfig) -> None:
        super().__init__(config)
        self._scene: PhotoScene | None = None

    @property
    def photo_scene(self) -> "PhotoScene":
        """The scene, made if it is not there.

        Raises:
            Lora3dError: Photos, network, or a stage's own errors.
        """
        if self._scene is None:
            from lora3d_ns.photo_scene import make_photo_scene

            source, settings, split = source_of(self.config), settings_of(self.config), split_of(self.config)
            folder = scene_folder(self.config, Path("outputs") / self.config.data.stem)
            self._scene = make_photo_scene(source, folder, settings, split)
        return self._scene

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        """Cameras at the photos' own resolution; for `train` also the cloud with its weights.

        `val` and `test` are the held-out photos, or those of the training where none is held out.
        """
        scene = self.photo_scene
        photos = scene.training if split == "train" or not scene.held_out else scene.held_out
        metadata: dict[str, Any] = {"held_out": split != "train" and bool(scene.held_out)}
        if split == "train":
            cloud = scene.scene
            metadata |= {
                "points3D_xyz": cloud.points,
                "points3D_rgb": cloud.colors,
                "points3D_weights": cloud.point_weights,
                "points3D_views": cloud.point_views,
                "photo_scene": scene,
            }
        masks = [photo.mask for photo in photos if photo.mask is not None]
        return DataparserOutputs(
            image_filenames=[photo.image for photo in photos],
            cameras=nerfstudio_cameras(photos),
            scene_box=_scene_box(scene),
            mask_filenames=masks if len(masks) == len(photos) else None,
            metadata=metadata,
            dataparser_transform=torch.eye(4)[:3],
            dataparser_scale=1.0,
        )


def nerfstudio_cameras(photos: "tuple[ScenePhoto, ...]") -> Cameras:
    """The photos' cameras as nerfstudio writes them: OpenGL axes, the same world and pixels."""
    T_world_camera = torch.stack([photo.T_world_camera for photo in photos])
    K = torch.stack([photo.K for photo in photos]).float()
    sizes = torch.tensor([photo.size for photo in photos])
    return Cameras(
        camera_to_worlds=opengl_from_opencv(T_world_camera)[:, :3].float(),
        fx=K[:, 0, 0],
        fy=K[:, 1, 1],
        cx=K[:, 0, 2],
        cy=K[:, 1, 2],
        width=sizes[:, 0],
        height=sizes[:, 1],
        camera_type=CameraType.PERSPECTIVE,
        # `ns-export cameras` writes into it.
        metadata={},
    )


def scene_poses(camera_to_worlds: Tensor) -> Tensor:
    """T_world_camera (OpenCV, 4x4) of nerfstudio's poses (OpenGL, 3x4)."""
    bottom = camera_to_worlds.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(camera_to_worlds), 1, 4)
    return opencv_from_opengl(torch.cat([camera_to_worlds, bottom], dim=1))


def _scene_box(scene: "PhotoScene") -> SceneBox:
    """Cloud and cameras; the farthest hundredth of the cloud on each side does not stretch it."""
    centres = torch.stack([photo.T_world_camera[:3, 3] for photo in scene.photos]).float()
    points = scene.scene.points
    corners = centres
    if len(points):
        # quantile() takes no more than 2^24 values.
        sample = points[:: 1 + len(points) // 1_000_000]
        corners = torch.cat([centres, sample.quantile(0.01, dim=0)[None], sample.quantile(0.99, dim=0)[None]])
    return SceneBox(aabb=torch.stack([corners.amin(dim=0), corners.amax(dim=0)]))


# --- what the settings say ------------------------------------------------------------------------


def source_of(config: Lora3dDataParserConfig) -> "Source":
    """Photos and network of a configuration."""
    from lora3d_ns.commands import Source

    return Source(
        photos=config.data,
        network=config.network,
        device=config.device,
        known_cameras=config.known_cameras,
        only_listed=config.only_listed,
        every=config.every,
        at_most=config.at_most,
        cache=config.cache,
    )


def settings_of(config: Lora3dDataParserConfig) -> "ReconstructSettings":
    """Settings of all stages of a configuration."""
    import dataclasses

    from lora3d_ns.pair_graph import CompleteGraph, RetrievalGraph, WindowGraph
    from lora3d_ns.reconstruct import ReconstructSettings

    settings = ReconstructSettings(arm=config.arm, rounds=config.rounds)
    graphs = {"complete": CompleteGraph, "window": WindowGraph, "retrieval": RetrievalGraph}
    return dataclasses.replace(
        settings,
        graph=graphs[config.graph](),
        alignment=dataclasses.replace(settings.alignment, matches=config.matches),
        finetune=dataclasses.replace(settings.finetune, seed=config.seed),
    )


def split_of(config: Lora3dDataParserConfig) -> "SplitSettings":
    """Which photos a configuration holds out.

    Raises:
        SettingsError: Interval or fraction make no sense.
    """
    from lora3d_ns.splits import SplitSettings

    return SplitSettings(mode=config.split, interval=config.eval_interval, fraction=config.train_fraction)


def scene_folder(config: Lora3dDataParserConfig, beside: Path) -> Path:
    """Where the scene of a configuration lies: as told, or named by its content in the folder `beside`.

    Raises:
        PhotoError: The folder of photos is missing, or holds no photos.
    """
    if config.scene is not None:
        return config.scene
    from lora3d_ns.photo_scene import photo_scene_key

    key = photo_scene_key(source_of(config), settings_of(config), split_of(config))
    return beside.absolute() / f"{SCENE_FOLDER_PREFIX}{key}"


lora3d = DataParserSpecification(
    config=Lora3dDataParserConfig(),
    description="A few photos without poses: cameras and a weighted point cloud by self-calibrated DUSt3R (LoRA3D).",
)
"""Entry point `lora3d` of the group `nerfstudio.dataparser_configs`."""
