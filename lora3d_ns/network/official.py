"""The official DUSt3R implementation as a `PairNetwork`, where its package is installed.

Only for comparison: the package (`dust3r`, or its repackaging `mini_dust3r`) is under a non-commercial licence, is no
dependency of ours, and is imported by nothing but the functions here.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora3d_ns.errors import MissingPackageError
from lora3d_ns.network.base import Encoding, PairOutput
from lora3d_ns.network.checkpoint_architecture import OFFICIAL_CLASS, official_arguments, official_state_dict
from lora3d_ns.network.checkpoints import load_network

_PACKAGES = ("dust3r", "mini_dust3r")


def official_class() -> Any:
    """The class of the official network, from whichever package is installed.

    Raises:
        MissingPackageError: None is.
    """
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        for package in _PACKAGES:
            try:
                module = importlib.import_module(f"{package}.model")
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != package:
                    raise MissingPackageError(
                        f"{package} is installed, but not the package {error.name} that it needs",
                        way_out=f"Install {error.name}",
                    ) from error
            else:
                return getattr(module, OFFICIAL_CLASS)
    finally:
        # Importing it switches TF32 on for the whole process.
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    raise MissingPackageError(
        "the official DUSt3R implementation is not installed",
        way_out="Install `mini-dust3r` (non-commercial licence), or use `load_network`, which does not need it",
    )


def load_official(name_or_path: str | Path, device: str | torch.device = "cpu") -> "OfficialDust3r":
    """The official implementation with the weights that `load_network` finds under the same name or path.

    The weights are read by `load_network`, since the package's own loading would execute what a `.pth` asks for.

    Raises:
        MissingPackageError: The official package is not installed.
        CheckpointArchitectureError: The official class has no such network.
        CheckpointError: The weights cannot be loaded; see `load_network`.
    """
    network_class = official_class()
    network = load_network(name_or_path, device=device)
    with torch.device("meta"):
        model = network_class(**official_arguments(network.config))
    model.load_state_dict(official_state_dict(network), strict=True, assign=True)
    return OfficialDust3r(model.eval())


class OfficialDust3r:
    """The official network behind our protocol; implements `PairNetwork`.

    Args:
        model: An `AsymmetricCroCo3DStereo` of `dust3r` or `mini_dust3r`, with weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.decoder_embed.weight.device

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Encoding:
        """The image encoder's tokens of images in sRGB 0 to 1, with their grid positions as the only extra."""
        batch, _, height, width = images.shape
        true_shape = torch.tensor([[height, width]], device=images.device).expand(batch, 2)
        # This patch embedding wants portraits lying on their side, and turns them back by their true shape.
        lying = height > width and type(self.model.patch_embed).__name__ == "ManyAR_PatchEmbed"
        normalised = (images - 0.5) / 0.5
        tokens, positions, _ = self.model._encode_image(normalised.mT if lying else normalised, true_shape)
        return Encoding(tokens=tokens, height=height, width=width, extras=(positions,))

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        """Point maps in the first camera's frame, and the logarithm of the official raw confidence."""
        layers_first, layers_second = self.model._decoder(
            first.tokens, first.extras[0], second.tokens, second.extras[0]
        )
        # The heads themselves, not the wrappers that lay portraits on their side; in float32, as the original has it.
        prediction_first = self.model.downstream_head1(
            [layer.float() for layer in layers_first], (first.height, first.width)
        )
        prediction_second = self.model.downstream_head2(
            [layer.float() for layer in layers_second], (second.height, second.width)
        )
        return PairOutput(
            points_first=prediction_first["pts3d"],
            points_second=prediction_second["pts3d"],
            confidence_first=prediction_first["conf"].log(),
            confidence_second=prediction_second["conf"].log(),
        )
