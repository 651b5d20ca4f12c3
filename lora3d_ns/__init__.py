"""Photos without poses in, a self-calibrated 3D scene and Gaussian splats out (LoRA3D for nerfstudio)."""

__version__ = "0.1.0"
