"""Photos at a size the machine can train on, and evaluation where training has moved the cameras."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from PIL import Image
from torch import Tensor

from lora3d_ns.plugin.first_view import FirstView

if TYPE_CHECKING:
    from lora3d_ns.plugin.motion import StillMaps

LONGEST_SIDE_CUDA_PX = 1600
LONGEST_SIDE_CPU_PX = 256


def default_longest_side_px(device_type: str) -> int:
    """What a training on such a device finishes in minutes with."""
    return LONGEST_SIDE_CUDA_PX if device_type == "cuda" else LONGEST_SIDE_CPU_PX


@dataclass
class Lora3dDataManagerConfig(FullImageDatamanagerConfig):
    """Whole photos, at the size that training can bear."""

    _target: type = field(default_factory=lambda: Lora3dDataManager)
    cache_images_type: Literal["uint8", "float32"] = "uint8"
    """The image type returned from manager, caching images in uint8 saves memory"""
    longest_side_px: int | None = None
    """Photos are trained on and evaluated at this size at most; None: 1600 on CUDA, 256 on a CPU. Cameras, exports
    and the scene keep the photos' own resolution."""
    mask_moving: bool = False
    """Whether pixels that no static geometry explains are kept out of the losses, as masked ones are."""


class Lora3dDataset(InputDataset):
    """Photos resized with their cameras, to whole pixels in both.

    Args:
        dataparser_outputs: Photos and cameras.
        scale_factor: Of the resolution.
        longest_side_px: No photo becomes larger than this.
        still: Where nothing moves; None where that does not matter.
    """

    def __init__(
        self,
        dataparser_outputs: DataparserOutputs,
        scale_factor: float = 1.0,
        longest_side_px: int | None = None,
        still: "StillMaps | None" = None,
    ) -> None:
        super().__init__(dataparser_outputs, 1.0)
        self._still = still
        cameras = self.cameras
        sizes = torch.cat([cameras.width, cameras.height], dim=-1).reshape(-1, 2).double()
        scale = torch.full((len(sizes), 1), float(scale_factor), dtype=torch.float64)
        if longest_side_px is not None:
            scale = torch.minimum(scale, longest_side_px / sizes.amax(dim=1, keepdim=True))
        target = (sizes * scale).round().clamp_min(1)
        exact = (target / sizes).float()
        for name, axis in (("fx", 0), ("cx", 0), ("fy", 1), ("cy", 1)):
            values = getattr(cameras, name)
            setattr(cameras, name, values * exact[:, axis].reshape(values.shape))
        cameras.width = target[:, 0].long().reshape(cameras.width.shape)
        cameras.height = target[:, 1].long().reshape(cameras.height.shape)

    def _size(self, image_idx: int) -> tuple[int, int]:
        return int(self.cameras.width[image_idx]), int(self.cameras.height[image_idx])

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """The photo, (height, width, 3 or 4), 8 bits."""
        with Image.open(self.image_filenames[image_idx]) as image:
            opened = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
            if opened.size != self._size(image_idx):
                opened = opened.resize(self._size(image_idx), resample=Image.Resampling.LANCZOS)
            return np.array(opened, dtype=np.uint8)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict:
        """The photo with its mask: (height, width, 1), true where pixels count."""
        image = self.get_image_float32(image_idx) if image_type == "float32" else self.get_image_uint8(image_idx)
        data: dict[str, Any] = {"image_idx": image_idx, "image": image}
        masks = self._dataparser_outputs.mask_filenames
        if masks is not None:
            with Image.open(masks[image_idx]) as mask:
                # A pixel that shows a masked one in part does not count.
                resized = mask.convert("L").resize(self._size(image_idx), resample=Image.Resampling.BOX)
            data["mask"] = torch.from_numpy(np.array(resized) >= 250)[..., None]
        if self._still is not None:
            still = self._still.at_size(image_idx, self._size(image_idx))
            data["mask"] = data["mask"] & still if "mask" in data else still
        data.update(self.get_metadata(data))
        return data


class Lora3dDataManager(FullImageDatamanager[Lora3dDataset]):  # type: ignore[type-arg]
    """Full images at a bearable size."""

    config: Lora3dDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @cached_property
    def dataset_type(self) -> type[Lora3dDataset]:
        """What the photos are read by."""
        return Lora3dDataset

    def _longest_side_px(self) -> int:
        if self.config.longest_side_px is not None:
            return self.config.longest_side_px
        return default_longest_side_px(torch.device(self.device).type)

    def create_train_dataset(self) -> Lora3dDataset:
        """Photos to be trained on."""
        outputs = self.train_dataparser_outputs
        still = None
        if self.config.mask_moving:
            from lora3d_ns.photo_scene import SCENE_SUBFOLDER
            from lora3d_ns.plugin.motion import still_maps

            scene = outputs.metadata["photo_scene"]
            photos = scene.training
            still = still_maps(
                scene.folder / SCENE_SUBFOLDER, [photo.name for photo in photos], [photo.size for photo in photos]
            )
        return Lora3dDataset(outputs, self.config.camera_res_scale_factor, self._longest_side_px(), still)

    def create_eval_dataset(self) -> Lora3dDataset:
        """Photos held out, or those of the training where none is."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        return Lora3dDataset(outputs, self.config.camera_res_scale_factor, self._longest_side_px())


@dataclass
class Lora3dPipelineConfig(VanillaPipelineConfig):
    """Configuration of the pipeline."""

    _target: type = field(default_factory=lambda: Lora3dPipeline)


class Lora3dPipeline(VanillaPipeline):
    """Evaluates, renders and shows with the cameras as training has refined them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        datamanager: Any = self.datamanager
        self._original_train = datamanager.train_dataset.cameras.camera_to_worlds.clone()
        self._original_eval = datamanager.eval_dataset.cameras.camera_to_worlds.clone()
        self._splats.focal_px = float(datamanager.train_dataset.cameras.fx.median())
        self.first_view = FirstView(self)
        self._splats.held_out = bool(datamanager.eval_dataset.metadata.get("held_out", True))

    @property
    def _splats(self) -> Any:
        return self.model

    def move_cameras(self, *, training: bool) -> None:
        """Brings the cameras of the evaluation (and of the training) to where the model has moved them."""
        datamanager: Any = self.datamanager
        model = self._splats
        with torch.no_grad():
            own = not model.held_out and len(self._original_eval) == len(self._original_train)
            _put(datamanager.eval_dataset.cameras, model.refined_cameras(self._original_eval, training=own))
            if training:
                _put(datamanager.train_dataset.cameras, model.refined_cameras(self._original_train, training=True))

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Loads a checkpoint; outside training, all cameras are those it has refined."""
        super().load_pipeline(loaded_state, step)
        # In training the model refines its cameras as it goes: they must not be moved twice.
        trained = self.test_mode != "val"
        self.move_cameras(training=trained)
        if trained:
            # `ns-export cameras` moves them itself.
            self._splats.camera_optimizer.apply_to_camera = _where_it_is

    def get_eval_loss_dict(self, step: int) -> Any:
        """Loss of a photo of the evaluation."""
        self.move_cameras(training=False)
        return super().get_eval_loss_dict(step)

    def get_eval_image_metrics_and_images(self, step: int) -> Any:
        """Metrics of a photo of the evaluation."""
        self.move_cameras(training=False)
        return super().get_eval_image_metrics_and_images(step)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> Any:
        """Metrics of all photos of the evaluation, by both protocols."""
        self.move_cameras(training=False)
        self._splats.with_test_poses = True
        try:
            metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
            # One photo has no spread, and NaN is no JSON.
            return {name: value for name, value in metrics.items() if value == value}
        finally:
            self._splats.with_test_poses = False


def _where_it_is(camera: Cameras) -> Tensor:
    return camera.camera_to_worlds


def _put(cameras: Cameras, camera_to_worlds: Tensor) -> None:
    cameras.camera_to_worlds = camera_to_worlds.to(cameras.camera_to_worlds)
