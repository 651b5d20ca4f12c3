"""Settings of all stages, and what can be measured of a scene."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lora3d_ns.adapter.finetune import FineTuneSettings
from lora3d_ns.adapter.gate import GateSettings
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.stereo import StereoSettings
from lora3d_ns.errors import SettingsError
from lora3d_ns.pair_graph import CompleteGraph, PairGraphSettings
from lora3d_ns.predict import PredictionSettings
from lora3d_ns.pseudo_labels import PseudoLabelSettings
from lora3d_ns.types import Cameras

Arm = Literal["pretrained", "robust", "self_calibrated", "gt_finetuned", "depth_calibrated"]
"""`pretrained` aligns what the network says by DUSt3R's own objective, `robust` by Eq. 7 and 2D matches.
`self_calibrated` is the method; the last two learn, by the same recipe, from true depth and cameras, and from measured
depth with estimated cameras."""

LEARNING_ARMS: tuple[Arm, ...] = ("self_calibrated", "gt_finetuned", "depth_calibrated")


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """All settings of all stages.

    Attributes:
        arm: What is made of the network, see `Arm`.
        graph: Which pairs the network looks at.
        prediction: How it is run.
        alignment: Of predictions, before and after learning; `pretrained` has its own objective and no matches.
        stereo: How the photos themselves correct the depths, once their cameras rest on matches; not in `pretrained`.
        labels: What is believed enough to be learnt.
        finetune: How it is learnt.
        gate: When the result is accepted.
        rounds: How often labels are made and learnt; each time with labels that the adapter before has made better, and
            on from that adapter.
        point_cutoff: View weight from which on a pixel is a point of the scene's cloud.
    """

    arm: Arm = "self_calibrated"
    graph: PairGraphSettings = CompleteGraph()  # noqa: RUF009 (frozen)
    prediction: PredictionSettings = PredictionSettings()  # noqa: RUF009
    alignment: AlignmentSettings = AlignmentSettings()  # noqa: RUF009
    stereo: StereoSettings = StereoSettings()  # noqa: RUF009
    labels: PseudoLabelSettings = PseudoLabelSettings()  # noqa: RUF009
    finetune: FineTuneSettings = FineTuneSettings()  # noqa: RUF009
    gate: GateSettings = GateSettings()  # noqa: RUF009
    rounds: int = 1
    point_cutoff: float = 0.1

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.point_cutoff >= 0:
            raise SettingsError(
                f"{self.rounds} rounds, point_cutoff {self.point_cutoff}",
                way_out="Use one round or more, and a cut-off that is not negative",
            )

    def silent(self) -> "ReconstructSettings":
        """The same without bars."""
        return dataclasses.replace(
            self,
            prediction=dataclasses.replace(self.prediction, show_progress=False),
            alignment=dataclasses.replace(self.alignment, show_progress=False),
            finetune=dataclasses.replace(self.finetune, show_progress=False),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What was measured of the scene, for the arms that learn from it.

    Attributes:
        depths: Depth along each view's z axis at network resolution; 0 or NaN where there is none.
        cameras: True cameras in the unit of the depths; `depth_calibrated` does without.
    """

    depths: tuple[Float[Tensor, "_ _"], ...]
    cameras: Cameras | None = None
