"""The stages for one set of photos: each a plain function, kept in a cache under a key of what it depends on."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lora3d_ns import __version__
from lora3d_ns.adapter.finetune import FineTuned, beginning, finetune
from lora3d_ns.adapter.gate import Consistency, GateDecision, consistency, decide, label_error, least_matched_photo
from lora3d_ns.adapter.lora import Adapter, with_adapter
from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.matches import Matches, match_views
from lora3d_ns.alignment.stereo import with_stereo_depths
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import RetrievalGraph, build_pair_graph, check_connected
from lora3d_ns.predict import encode_views, image_features, predict_pairs
from lora3d_ns.pseudo_labels import labels_from_depths, pseudo_labels
from lora3d_ns.scene_io.stage_cache import StageCache, fingerprint
from lora3d_ns.stages.packing import packed_finetuned, packed_matches, unpacked_finetuned, unpacked_matches
from lora3d_ns.stages.settings import Measured, ReconstructSettings
from lora3d_ns.types import AlignedScene, PairGraph, PairPredictions, PseudoLabels, Views

_VERSION = 3
"""Part of every key: raised when a stage computes something else from the same input."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False, kw_only=True)
class Understood:
    """What a network makes of the photos: its predictions, brought into one scene.

    Attributes:
        predictions: Of all pairs.
        matches: 2D correspondences; None where the settings ask for none.
        aligned: The scene.
    """

    predictions: PairPredictions
    matches: Matches | None
    aligned: AlignedScene


class Stages:
    """The stages of a reconstruction.

    Args:
        views: The photos.
        network: The base; it is left as it is.
        settings: Of all stages.
        base_name: What the network is called, for the adapter's files.
        cache: Where results are kept.

    Attributes:
        graph: The pairs.
        base_fingerprint: Of the network.
        seconds: Time spent in each stage so far; next to nothing where the result was in the cache.

    Raises:
        DisconnectedViewsError: The graph leaves the photos in groups.
        SettingsError: The graph does not fit this number of photos.
    """

    def __init__(
        self, views: Views, network: Dust3r, settings: ReconstructSettings, *, base_name: str, cache: StageCache
    ) -> None:
        self.views = views
        self.network = network
        self.settings = settings
        self.base_name = base_name
        self.cache = cache
        self.graph = _graph(views, network, settings)
        self.base_fingerprint = network_fingerprint(network)
        self.seconds: dict[str, float] = {}

    # --- what the network makes of the photos -----------------------------------------------------

    def understood(self, adapter: Adapter | None) -> Understood:
        """Predictions, matches, alignment and corrected depths, with an adapter or without."""
        key = self._key("predict", self.views.images, self.graph, self.settings.prediction, _content(adapter))
        predictions = self._stage("predict", key, PairPredictions, lambda: self._predicted(adapter, self.graph))
        alignment = self.settings.alignment
        if self.settings.arm == "pretrained":
            alignment = dataclasses.replace(alignment, objective="plain", matches="off")
        matches = None
        if alignment.matches == "auto":
            packed = self._stage(
                "match",
                self._key("match", self.views, key),
                dict,
                lambda: packed_matches(match_views(self.views, predictions, show_progress=alignment.show_progress)),
            )
            matches = unpacked_matches(packed)
        aligned_key = self._key("align", self.views, alignment, key)

        def compute() -> AlignedScene:
            folder = self.cache.folder("align", aligned_key)
            checkpoint = None if folder is None else folder / "solver.pt"
            return align(
                self.views,
                predictions,
                alignment,
                matches=matches,
                checkpoint=checkpoint,
                device=self.network.device,
            )

        aligned = self._stage("align", aligned_key, AlignedScene, compute)
        stereo = self.settings.stereo
        if matches is not None and stereo.use == "auto" and self.settings.arm != "pretrained":
            scene = aligned
            aligned = self._stage(
                "stereo",
                self._key("stereo", aligned_key, stereo),
                AlignedScene,
                lambda: with_stereo_depths(self.views, scene, matches, stereo, device=self.network.device),
            )
        return Understood(predictions=predictions, matches=matches, aligned=aligned)

    def _predicted(self, adapter: Adapter | None, graph: PairGraph, *, silent: bool = False) -> PairPredictions:
        network = self.network
        if adapter is not None:
            network = with_adapter(self.network, adapter, fingerprint=self.base_fingerprint)
        settings = self.settings.prediction
        return predict_pairs(
            self.views,
            graph,
            network,
            dataclasses.replace(settings, show_progress=False) if silent else settings,
        )

    # --- learning ---------------------------------------------------------------------------------

    def pseudo_labels(self, understood: Understood) -> PseudoLabels:
        """What of the scene is believed enough to be learnt."""
        return pseudo_labels(self.views, understood.aligned, self.settings.labels, predictions=understood.predictions)

    def measured_labels(self, understood: Understood, measured: Measured | None) -> PseudoLabels:
        """Labels of measured depth, with true cameras or, in the arm `depth_calibrated`, with estimated ones.

        Raises:
            SettingsError: What the arm needs was not measured.
            InvalidDataError: The depths are of other photos, or there are none.
        """
        arm = self.settings.arm
        if measured is None or (arm == "gt_finetuned" and measured.cameras is None):
            missing = "depths and cameras" if arm == "gt_finetuned" else "depths"
            raise SettingsError(
                f"the arm {arm} learns from measured {missing}", way_out="Give them, or use another arm"
            )
        if tuple(tuple(depth.shape) for depth in measured.depths) != self.views.shapes:
            raise InvalidDataError(
                "the measured depths have not the photos' shapes", way_out="Give them at network resolution"
            )
        cameras, depths = measured.cameras, measured.depths
        if arm == "depth_calibrated" or cameras is None:
            cameras = understood.aligned.cameras
            factor = _unit_ratio(understood.aligned, depths)
            depths = tuple(depth * factor for depth in depths)
        return labels_from_depths(
            self.views, self.graph, T_world_camera=cameras.T_world_camera, K=cameras.K, depths=depths
        )

    def finetuned(self, labels: PseudoLabels, begun_from: FineTuned | None = None) -> FineTuned:
        """An adapter that has learnt the labels, on from what was learnt before if that is given."""
        settings = self.settings.finetune if begun_from is None else self.settings.finetune.further()
        key = self._key("finetune", self.views.images, labels, settings, beginning(begun_from))

        def compute() -> dict[str, object]:
            folder = self.cache.folder("finetune", key)
            tuned = finetune(
                self.views,
                labels,
                self.network,
                settings,
                base_name=self.base_name,
                base_fingerprint=self.base_fingerprint,
                provenance={"arm": self.settings.arm, "photos": len(self.views), "version": __version__},
                checkpoint=None if folder is None else folder / "training.pt",
                begun_from=begun_from,
            )
            return packed_finetuned(tuned)

        return unpacked_finetuned(self._stage("finetune", key, dict, compute), settings)

    def decided(
        self, tuned: FineTuned, used_before: Adapter | None, understood: Understood, labels: PseudoLabels
    ) -> GateDecision:
        """Whether the pairs that were held out are the better for this adapter, against the one used before it."""
        with self._timed("gate"):
            edges = tuple(sorted(tuned.held_out))
            if not edges:
                nothing = Consistency(label_error=None, order_error=None, match_error=None, matches=0)
                return decide(nothing, nothing, self.settings.gate)
            graph = PairGraph(view_count=len(self.views), edges=edges)
            before, after = (
                consistency(predictions, understood.matches, label_error=label_error(predictions, labels))
                for predictions in (
                    self._predicted(adapter, graph, silent=True) for adapter in (used_before, tuned.adapter)
                )
            )
            least_matched = least_matched_photo(self.views.names, understood.matches)
            decision = decide(before, after, self.settings.gate, least_matched=least_matched)
            if tuned.best_epoch == 0:
                reason = "no epoch brought the pairs held out nearer to their labels"
                return dataclasses.replace(decision, accepted=False, reason=reason)
            return decision

    # --- keys and times ---------------------------------------------------------------------------

    def _key(self, stage: str, *parts: object) -> str:
        return fingerprint(_VERSION, __version__, stage, self.base_fingerprint, *parts)

    def _stage(self, stage: str, key: str, expected_type: type[_Result], compute: Callable[[], _Result]) -> _Result:
        with self._timed(stage):
            result = self.cache.result(stage, key, expected_type, compute)
            self.cache.clear_partial(stage, key)
            return result

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


def _content(adapter: Adapter | None) -> object:
    """What of an adapter decides about the network's answers."""
    return None if adapter is None else (adapter.settings, dict(adapter.tensors))


def _graph(views: Views, network: Dust3r, settings: ReconstructSettings) -> PairGraph:
    features = None
    if isinstance(settings.graph, RetrievalGraph):
        features = image_features(encode_views(views, network, settings.prediction))
    graph = build_pair_graph(settings.graph, len(views), features=features)
    check_connected(graph, views.names)
    return graph


def _unit_ratio(aligned: AlignedScene, depths: tuple[Tensor, ...]) -> float:
    """World units per unit of the measured depths: the median ratio over the pixels that have both."""
    ratios = [
        (found / depth)[torch.isfinite(depth) & (depth > 0) & (weight > 0)]
        for found, depth, weight in zip(aligned.depths, depths, aligned.view_weights, strict=True)
    ]
    joined = torch.cat(ratios)
    if len(joined) == 0:
        raise InvalidDataError("no pixel has a measured depth", way_out="Give depths that are positive somewhere")
    return float(joined.median())
