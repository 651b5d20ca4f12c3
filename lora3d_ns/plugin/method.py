"""The method `lora3d-splat`: photos without poses in, Gaussian splats out."""

from nerfstudio.configs.base_config import LoggingConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig
from lora3d_ns.plugin.model import Lora3dSplatModelConfig
from lora3d_ns.plugin.pipeline import Lora3dDataManagerConfig, Lora3dPipelineConfig
from lora3d_ns.plugin.trainer import DEFAULT_ITERATIONS, Lora3dTrainerConfig
from lora3d_ns.splat.optimizer import ScaledAdam

_EPSILON = 1e-15


def _adam(learning_rate: float) -> AdamOptimizerConfig:
    return AdamOptimizerConfig(lr=learning_rate, eps=_EPSILON)


def _scaled_adam(learning_rate: float) -> AdamOptimizerConfig:
    return AdamOptimizerConfig(_target=ScaledAdam, lr=learning_rate, eps=_EPSILON)


def _decaying(final: float, warmup_steps: int = 0) -> ExponentialDecaySchedulerConfig:
    return ExponentialDecaySchedulerConfig(
        lr_final=final, max_steps=DEFAULT_ITERATIONS, warmup_steps=warmup_steps, lr_pre_warmup=0.0
    )


lora3d_splat = MethodSpecification(
    config=Lora3dTrainerConfig(
        method_name="lora3d-splat",
        steps_per_eval_batch=0,
        steps_per_eval_image=250,
        steps_per_eval_all_images=1_000_000,
        steps_per_save=250,
        max_num_iterations=DEFAULT_ITERATIONS,
        mixed_precision=False,
        pipeline=Lora3dPipelineConfig(
            datamanager=Lora3dDataManagerConfig(dataparser=Lora3dDataParserConfig()),
            model=Lora3dSplatModelConfig(),
        ),
        optimizers={
            # Positions and cameras: in pixels per step, see `Lora3dSplatModel.step_cb`.
            "means": {"optimizer": _scaled_adam(1.0), "scheduler": _decaying(0.0125)},
            "features_dc": {"optimizer": _adam(5e-3), "scheduler": None},
            "features_rest": {"optimizer": _adam(5e-3 / 20), "scheduler": None},
            "opacities": {"optimizer": _adam(0.1), "scheduler": None},
            "scales": {"optimizer": _adam(2e-2), "scheduler": None},
            "quats": {"optimizer": _adam(8e-3), "scheduler": None},
            "camera_opt": {"optimizer": _scaled_adam(0.02), "scheduler": _decaying(0.002, warmup_steps=200)},
        },
        logging=LoggingConfig(steps_per_log=10),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer+tensorboard",
    ),
    description="Gaussian splats from a few photos without poses, by self-calibrated DUSt3R (LoRA3D).",
)
"""Entry point `lora3d-splat` of the group `nerfstudio.method_configs`."""
