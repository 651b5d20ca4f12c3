"""Splatfacto for a few photos: seeds from the weighted cloud, cameras refined along, depth that keeps to the scene.

What is not said here is Splatfacto's. On CUDA the Gaussians are rasterized by gsplat, elsewhere by our own routine.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from gsplat.strategy import DefaultStrategy
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.models.splatfacto import RGB2SH, SplatfactoModel, SplatfactoModelConfig, num_sh_bases
from nerfstudio.utils.colors import get_color
from torch import Tensor
from torch.nn import Parameter

from lora3d_ns.plugin.cameras import SceneCameraOptimizerConfig, T_camera_world_of, carried_along
from lora3d_ns.plugin.held_out_poses import refined_test_pose
from lora3d_ns.plugin.metrics import PerceptualMetric, image_metrics, masked_loss

logger = logging.getLogger(__name__)

GAUSSIANS = ("means", "scales", "quats", "features_dc", "features_rest", "opacities")

FEW_PHOTOS = 5
"""Up to so many the scene's own depth counts fully."""


@dataclass
class Lora3dSplatModelConfig(SplatfactoModelConfig):
    """Gaussian splatting of a few photos with self-calibrated cameras."""

    _target: type = field(default_factory=lambda: Lora3dSplatModel)
    seeding: Literal["weighted", "stock"] = "weighted"
    """Seeds by `lora3d_ns.splat.seed`, or all points with Splatfacto's sizes and opacities."""
    seed_weight_cutoff: float = 0.1
    """Points of the cloud below this calibrated weight make no Gaussian."""
    seed_redundancy: float = 0.02
    """Relative difference of depth below which two views say the same; 0 keeps every point."""
    seed_footprint: float = 0.7
    """Standard deviation of a seed in spacings of the pixels it came from."""
    length_unit: float | None = None
    """Length that learning rates of positions refer to; None: what a pixel of the photos trained on spans at the median
    depth of the scene's points."""
    max_gaussians: int = 500_000
    """At most so many seeds, the most certain ones."""
    densify: bool = False
    """Whether Gaussians are split, cloned and culled while training; with few photos this makes floaters."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=SceneCameraOptimizerConfig)
    """How the training cameras are refined along with the Gaussians."""
    depth_weight: float = 0.1
    """Weight of the relative difference between rendered depth and the scene's, at the scene's points, with five photos
    or fewer; with N photos it is (5 / N)^2 of that, since photos tell depth better than the scene does when many see
    the same."""
    num_downscales: int = 0
    """Halvings of the resolution to begin with."""
    sh_degree: int = 1
    """Of the colours' dependence on direction: a few photos cannot tell more."""
    sh_degree_interval: int = 300
    """Steps until the next degree is learnt."""
    test_pose_steps: int = 80
    """Steps that a held-out photo's pose is optimised for on frozen Gaussians, in the second protocol; 0 leaves it
    out."""
    lpips: bool = True
    """Whether LPIPS is among the metrics, where its weights can be had."""


class Lora3dSplatModel(SplatfactoModel):
    """Gaussians that begin as the scene's own points."""

    config: Lora3dSplatModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    unit: Tensor
    photo_scene: Any
    camera_optimizer: Any

    def populate_modules(self) -> None:
        """Gaussians, cameras, metrics."""
        # Not Splatfacto's own: it needs CUDA, and weights from the network for LPIPS.
        from lora3d_ns.splat.optimizer import ScaledAdam

        self._scaled = ScaledAdam
        metadata = self.kwargs.get("metadata") or {}
        self.photo_scene = metadata.get("photo_scene")
        self.held_out: bool = False
        self.with_test_poses = False
        self.step = 0
        self.focal_px = self._focal_of_the_photos_px()
        self.crop_box: OrientedBox | None = None
        parameters, rates = self._seeded()
        self.gauss_params = torch.nn.ParameterDict({name: Parameter(parameters[name]) for name in GAUSSIANS})
        self.register_buffer("unit", torch.tensor(self._typical_depth()), persistent=True)
        self._rates = rates
        self.camera_optimizer = self.config.camera_optimizer.setup(num_cameras=self.num_train_data, device="cpu")
        if hasattr(self.camera_optimizer, "unit"):
            self.camera_optimizer.unit = float(self.unit)
        self.perceptual = PerceptualMetric() if self.config.lpips else None
        # The colour of viser's own background.
        self.background_color = (
            torch.tensor([0.1490, 0.1647, 0.2157])
            if self.config.background_color == "random"
            else get_color(self.config.background_color)
        )
        self.strategy = self._strategy()
        self.strategy_state = self.strategy.initialize_state(
            scene_scale=float(self.unit) if self.config.length_unit is None else self.config.length_unit
        )
        self._rasterization: Any = None
        self._known_unit: float | None = None

    def _unit_length(self) -> float:
        """`unit` as a number, read once: each reading would wait for the GPU."""
        if self._known_unit is None:
            self._known_unit = float(self.unit)
        return self._known_unit

    # --- seeds --------------------------------------------------------------------------------------

    def _seeded(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Initial parameters, and each Gaussian's share of the learning rate."""
        if self.photo_scene is not None and self.config.seeding == "weighted":
            from lora3d_ns.splat.seed import SeedSettings, seed_gaussians

            seeds = seed_gaussians(
                self.photo_scene.scene,
                SeedSettings(
                    weight_cutoff=self.config.seed_weight_cutoff,
                    redundancy=self.config.seed_redundancy,
                    footprint=self.config.seed_footprint,
                    at_most=self.config.max_gaussians,
                ),
            )
            logger.info("%d Gaussians from %d points", len(seeds.points), len(self.photo_scene.scene.points))
            return self._initial(seeds.points, seeds.colors, seeds.sigmas, seeds.opacities), seeds.rates
        if self.seed_points is not None and len(self.seed_points[0]) > 3 and not self.config.random_init:
            points, colors = self.seed_points[0].float().cpu(), self.seed_points[1].cpu()
        else:
            points = (torch.rand(self.config.num_random, 3) - 0.5) * self.config.random_scale
            colors = (torch.rand(self.config.num_random, 3) * 255).to(torch.uint8)
        distances, _ = self.k_nearest_sklearn(points, 3)
        sigmas = torch.from_numpy(distances).mean(dim=1).clamp_min(1e-9)
        return self._initial(points, colors, sigmas, torch.full((len(points),), 0.1)), None

    def _initial(self, points: Tensor, colors: Tensor, sigmas: Tensor, opacities: Tensor) -> dict[str, Tensor]:
        rgb = colors.float() / 255.0
        count, bases = len(points), num_sh_bases(self.config.sh_degree)
        quats = torch.zeros(count, 4)
        quats[:, 0] = 1.0
        return {
            "means": points.clone(),
            "scales": torch.log(sigmas)[:, None].repeat(1, 3),
            "quats": quats,
            "features_dc": RGB2SH(rgb) if self.config.sh_degree > 0 else torch.logit(rgb, eps=1e-4),
            "features_rest": torch.zeros(count, bases - 1, 3),
            "opacities": torch.logit(opacities)[:, None],
        }

    def _typical_depth(self) -> float:
        """The median depth of the cloud in its own views."""
        if self.photo_scene is None or len(self.photo_scene.scene.points) == 0:
            return 1.0
        from lora3d_ns.splat.seed import project_to_own_views

        scene = self.photo_scene.scene
        return float(project_to_own_views(scene.points, scene.point_views.long(), scene.cameras)[1].median())

    def _focal_of_the_photos_px(self) -> float:
        """Median focal length, until the pipeline says at which size it trains."""
        if self.photo_scene is None:
            return 1.0
        return float(self.photo_scene.scene.cameras.K[:, [0, 1], [0, 1]].median())

    def _strategy(self) -> DefaultStrategy:
        config = self.config
        return DefaultStrategy(
            prune_opa=config.cull_alpha_thresh,
            grow_grad2d=config.densify_grad_thresh,
            grow_scale3d=config.densify_size_thresh,
            grow_scale2d=config.split_screen_size,
            prune_scale3d=config.cull_scale_thresh,
            prune_scale2d=config.cull_screen_size,
            refine_scale2d_stop_iter=config.stop_screen_size_at,
            refine_start_iter=config.warmup_length,
            refine_stop_iter=config.stop_split_at,
            reset_every=config.reset_alpha_every * config.refine_every,
            refine_every=config.refine_every,
            pause_refine_after_reset=self.num_train_data + config.refine_every,
            absgrad=config.use_absgrad,
            revised_opacity=False,
            verbose=False,
        )

    # --- checkpoints --------------------------------------------------------------------------------

    def load_state_dict(self, dict: Mapping[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Loads Gaussians of any number into the parameters that the optimizers already know.

        Splatfacto makes new parameters here, so that a resumed training moves none of them.
        """
        self.step = 30_000
        self._known_unit = None
        count = len(dict["gauss_params.means"])
        for parameter in self.gauss_params.values():
            parameter.data = torch.zeros((count, *parameter.shape[1:]), device=self.device)
        return torch.nn.Module.load_state_dict(self, OrderedDict(dict), **kwargs)

    # --- training -----------------------------------------------------------------------------------

    def step_cb(self, optimizers: Optimizers, step: int) -> None:
        """Before each step: tells the optimizers how much a pixel is, and each point's rate."""
        super().step_cb(optimizers, step)
        means, cameras = (optimizers.optimizers.get(name) for name in ("means", "camera_opt"))
        if isinstance(means, self._scaled):
            pixel = self._unit_length() / self.focal_px
            means.unit = pixel if self.config.length_unit is None else self.config.length_unit
            if self._rates is not None and len(self._rates) == self.num_points:
                means.set_rates(self.gauss_params["means"], self._rates)
        if isinstance(cameras, self._scaled):
            # Turned by 1 / f, or shifted by depth / f, a camera sees everything move by a pixel.
            cameras.unit = 1.0 / self.focal_px

    def step_post_backward(self, step: int) -> None:
        """Densification, where it is asked for."""
        if self.config.densify:
            super().step_post_backward(step)

    def get_outputs(self, camera: Cameras) -> dict[str, Tensor | list]:
        """Colour, depth and opacity of the Gaussians in one camera.

        Args:
            camera: One camera; in training its index among the training cameras is in its metadata.
        """
        assert camera.shape[0] == 1, "one camera at a time"
        c2w = camera.camera_to_worlds
        if self.training:
            c2w = self.camera_optimizer.apply_to_camera(camera)
        factor = self._get_downscale_factor()
        camera.rescale_output_resolution(1 / factor)
        K = camera.get_intrinsics_matrices().to(self.device)
        width, height = int(camera.width.item()), int(camera.height.item())
        camera.rescale_output_resolution(factor)  # type: ignore[arg-type]
        self.last_size = (height, width)
        within = None
        if self.crop_box is not None and not self.training:
            within = self.crop_box.within(self.means).squeeze()
            if not bool(within.any()):
                return cast(
                    dict[str, Tensor | list],
                    self.get_empty_outputs(width, height, self.background_color.to(self.device)),
                )
        with_depth = not self.training or self.config.output_depth_during_training or self._keeps_depth()
        render, alpha = self.rendered(T_camera_world_of(c2w).to(self.device), K, width, height, with_depth, within)
        background = self._get_background_color()
        rgb = (render[..., :3] + (1 - alpha) * background).clamp(0.0, 1.0)
        depth = None
        if with_depth:
            depth = render[..., 3:4]
            if not self.training:
                depth = torch.where(alpha > 0, depth, depth.detach().max())
        return {
            "rgb": rgb,
            "depth": depth,  # type: ignore[dict-item]
            "accumulation": alpha,
            "background": background if self.training else background.expand(height, width, 3),
        }

    def rendered(
        self, T_camera_world: Tensor, K: Tensor, width: int, height: int, with_depth: bool, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Colour (and expected depth as a fourth channel) without background, and opacity, in one OpenCV camera."""
        from lora3d_ns.splat.rasterizer import choose_rasterizer

        if self._rasterization is None:
            self._rasterization = choose_rasterizer(self.device)
        chosen = slice(None) if within is None else within
        colors = torch.cat([self.features_dc[chosen][:, None], self.features_rest[chosen]], dim=1)
        degree = None
        if self.config.sh_degree > 0:
            degree = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        else:
            colors = torch.sigmoid(colors).squeeze(1)
        render, alpha, self.info = self._rasterization(
            means=self.means[chosen],
            quats=self.quats[chosen],
            scales=torch.exp(self.scales[chosen]),
            opacities=torch.sigmoid(self.opacities[chosen]).squeeze(-1),
            colors=colors,
            viewmats=T_camera_world[None],
            Ks=K.reshape(1, 3, 3),
            width=width,
            height=height,
            packed=False,
            near_plane=0.01 * self._unit_length(),
            far_plane=1e10,
            render_mode="RGB+ED" if with_depth else "RGB",
            sh_degree=degree,
            sparse_grad=False,
            absgrad=self.strategy.absgrad,
            rasterize_mode=self.config.rasterize_mode,
        )
        if self.training and self.config.densify:
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
        return render[0], alpha[0]

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict | None = None
    ) -> dict[str, Tensor]:
        """L1 and SSIM over the pixels that count, and few-view regularisation."""
        del metrics_dict
        image = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        mask = None
        if "mask" in batch:
            mask = self._downscale_if_required(batch["mask"]).to(self.device) > 0.5
        losses = {"main_loss": masked_loss(outputs["rgb"], image, mask, ssim_share=self.config.ssim_lambda)}
        if self.config.use_scale_regularization and self.step % 10 == 0:
            sigma = torch.exp(self.scales)
            ratio = sigma.amax(dim=-1) / sigma.amin(dim=-1)
            losses["scale_reg"] = (
                0.1 * (ratio.clamp_min(self.config.max_gauss_ratio) - self.config.max_gauss_ratio).mean()
            )
        if self.training:
            if self._keeps_depth() and outputs.get("depth") is not None:
                share = min(1.0, FEW_PHOTOS / self.num_train_data) ** 2
                depth_loss = self._depth_loss(outputs, int(batch["image_idx"]))
                losses["depth_loss"] = self.config.depth_weight * share * depth_loss
            self.camera_optimizer.get_loss_dict(losses)
        return losses

    def _keeps_depth(self) -> bool:
        return self.config.depth_weight > 0 and self.photo_scene is not None

    def _depth_loss(self, outputs: dict[str, Tensor], view: int) -> Tensor:
        """Mean of `w / (w + 1) |D - d| / d` over the scene's points of this view, D rendered and d the scene's."""
        pixels, depths, weights, size = self._scene_points(view)
        height, width = outputs["depth"].shape[:2]
        x = (pixels[:, 0] * (width / size[0])).long().clamp(0, width - 1)
        y = (pixels[:, 1] * (height / size[1])).long().clamp(0, height - 1)
        seen = outputs["accumulation"][y, x, 0].detach() > 0.5
        difference = (outputs["depth"][y, x, 0] - depths).abs() / depths
        trust = weights / (weights + 1.0) * seen
        return (trust * difference.clamp_max(1.0)).sum() / weights.numel()

    def _scene_points(self, view: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Source pixels, depths and weights of the scene's points of one training view."""
        if not hasattr(self, "_points_by_view"):
            from lora3d_ns.splat.seed import project_to_own_views

            scene = self.photo_scene.scene
            views = scene.point_views.long()
            pixels, depths = project_to_own_views(scene.points, views, scene.cameras)
            self._points_by_view = [
                tuple(part[views == v].to(self.device) for part in (pixels, depths, scene.point_weights))
                for v in range(len(scene.names))
            ]
        pixels, depths, weights = self._points_by_view[view]
        return pixels, depths, weights, self.photo_scene.scene.cameras.sizes[view]

    # --- evaluation ---------------------------------------------------------------------------------

    def refined_cameras(self, camera_to_worlds: Tensor, *, training: bool) -> Tensor:
        """Where training has moved cameras: its own as they were refined, others as those beside them.

        Args:
            camera_to_worlds: Poses as the dataparser gave them (OpenGL): all training cameras, or any others.
            training: Which of the two.
        """
        optimizer = self.camera_optimizer
        if optimizer.config.mode == "off":
            return camera_to_worlds
        indices = torch.arange(optimizer.num_cameras)
        if training:
            return optimizer.moved(camera_to_worlds, indices)
        before = self._training_poses()
        if before is None:
            return camera_to_worlds
        return carried_along(before, optimizer.moved(before, indices), camera_to_worlds, unit=float(self.unit))

    def _training_poses(self) -> Tensor | None:
        if self.photo_scene is None:
            return None
        from lora3d_ns.plugin.dataparser import nerfstudio_cameras

        return nerfstudio_cameras(self.photo_scene.training).camera_to_worlds

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Renders one camera, and remembers it for `get_image_metrics_and_images`."""
        assert camera is not None
        self.set_crop(obb_box)
        self._last_camera = camera
        return cast(dict[str, Tensor], self.get_outputs(camera.to(self.device)))

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Any]:
        """PSNR of the current image, number of Gaussians, and how far cameras have moved."""
        image = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        error = (outputs["rgb"].detach() - image).square().mean()
        metrics: dict[str, Any] = {"psnr": -10.0 * torch.log10(error.clamp_min(1e-12))}
        metrics["gaussian_count"] = self.num_points
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one photo by two protocols, and the photo beside its rendering.

        The plain names are of the pose the photo was registered with; `_pose_optimized` of the pose that fits the
        frozen Gaussians best. `held_out` is 0 where the photo was trained on.
        """
        image = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        mask = batch["mask"].to(self.device) if "mask" in batch else None
        metrics = image_metrics(outputs["rgb"], image, mask, self.perceptual)
        shown = [image, outputs["rgb"]]
        if self.with_test_poses and self.config.test_pose_steps > 0:
            better = refined_test_pose(
                self, self._last_camera.to(self.device), image, mask, self.config.test_pose_steps
            )
            metrics |= {
                f"{name}_pose_optimized": value
                for name, value in image_metrics(better, image, mask, self.perceptual).items()
            }
            shown.append(better)
        metrics |= {"held_out": float(self.held_out), "gaussians": float(self.num_points)}
        return metrics, {"img": torch.cat(shown, dim=1)}
