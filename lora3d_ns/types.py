"""Every dataclass that stages hand to each other. Read this first.

    Views + PairGraph -> PairPredictions -> AlignedScene -> PseudoLabels
                                                       \\-> Scene

All are frozen and carry no behaviour beyond checking themselves and answering simple questions. Photos may differ in
shape, so what belongs to one view is one entry of a tuple, never a padded row of a tensor. Frames, pixels and
confidence are as written in `lora3d_ns.conventions`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float32, Int32, UInt8
from torch import Tensor

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidDataError(
            problem, way_out="This is a contradiction between the arrays handed in; check the caller"
        )


def _require_one_per_view(owner: object, view_count: int, field_names: Sequence[str]) -> None:
    for name in field_names:
        length = len(getattr(owner, name))
        _require(length == view_count, f"{type(owner).__name__}.{name} has {length} entries for {view_count} views")


@dataclass(frozen=True, eq=False, kw_only=True)
class Views:
    """Photos as the network sees them, and everything needed to go back to the files.

    Attributes:
        names: Unique names, in natural order; relative to the folder they came from.
        images: sRGB in 0 to 1 at network resolution, each its own height and width.
        masks: True where a pixel counts, at network resolution; None where all count.
        source_from_network: Where each network pixel lies in the upright source photo.
        source_sizes: (width, height) of the upright source photos in pixels.
        source_paths: The files; None for images that never were files.
        focal_exif_px: Focal length from EXIF in source pixels; None where EXIF has none.
        lens_groups: Photos with the same string share a lens (camera, size and focal length agree in EXIF).
        known_K: Intrinsics given by the user, in source pixels.
        known_T_world_camera: Poses given by the user.
    """

    names: tuple[str, ...]
    images: tuple[Float32[Tensor, "3 _ _"], ...]
    masks: tuple[Bool[Tensor, "_ _"] | None, ...]
    source_from_network: tuple[PixelAffine, ...]
    source_sizes: tuple[tuple[int, int], ...]
    source_paths: tuple[Path | None, ...]
    focal_exif_px: tuple[float | None, ...]
    lens_groups: tuple[str, ...]
    known_K: tuple[Float[Tensor, "3 3"] | None, ...]
    known_T_world_camera: tuple[Float[Tensor, "4 4"] | None, ...]

    def __post_init__(self) -> None:
        _require_one_per_view(self, len(self.names), [field.name for field in dataclasses.fields(self)])
        _require(len(self.names) > 0, "Views without a single view")
        _require(len(set(self.names)) == len(self.names), "Views.names are not unique")
        for name, image, mask in zip(self.names, self.images, self.masks, strict=True):
            _require(
                mask is None or mask.shape == image.shape[1:],
                f"the mask of {name} does not have its image's shape {tuple(image.shape[1:])}",
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each view at network resolution."""
        return tuple((image.shape[1], image.shape[2]) for image in self.images)

    @property
    def cropped_fractions(self) -> tuple[float, ...]:
        """Share of each source photo that lies outside the network image (0 where nothing was lost)."""
        fractions = []
        for (height, width), affine, (source_width, source_height) in zip(
            self.shapes, self.source_from_network, self.source_sizes, strict=True
        ):
            kept_x = min(affine.offset_x_px + affine.scale_x * width, source_width) - max(affine.offset_x_px, 0.0)
            kept_y = min(affine.offset_y_px + affine.scale_y * height, source_height) - max(affine.offset_y_px, 0.0)
            fractions.append(max(0.0, 1.0 - kept_x * kept_y / (source_width * source_height)))
        return tuple(fractions)

    def select(self, indices: Sequence[int]) -> "Views":
        """The views of these indices, in that order."""
        return Views(
            **{field.name: tuple(getattr(self, field.name)[i] for i in indices) for field in dataclasses.fields(self)}
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PairGraph:
    """Which ordered pairs of views the network looks at.

    Attributes:
        view_count: Number of views; edges refer to 0 .. view_count - 1.
        edges: Ordered pairs (i, j), unique, sorted, i != j. Both point maps of an edge are in camera i's frame.
    """

    view_count: int
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        _require(len(set(self.edges)) == len(self.edges), "PairGraph.edges are not unique")
        _require(list(self.edges) == sorted(self.edges), "PairGraph.edges are not sorted")
        for i, j in self.edges:
            _require(
                i != j and 0 <= i < self.view_count and 0 <= j < self.view_count,
                f"edge ({i}, {j}) does not join two of the {self.view_count} views",
            )

    def __len__(self) -> int:
        return len(self.edges)


@dataclass(frozen=True, eq=False, kw_only=True)
class PairPrediction:
    """What the network says of one ordered pair (i, j).

    Attributes:
        points_first: X^{i,i}: for each pixel of view i its 3D point in camera i's frame.
        points_second: X^{j,i}: for each pixel of view j its 3D point, also in camera i's frame.
        confidence_first, confidence_second: C = log(raw confidence) >= 0 of the same pixels.
    """

    points_first: Float[Tensor, "height_first width_first 3"]
    points_second: Float[Tensor, "height_second width_second 3"]
    confidence_first: Float[Tensor, "height_first width_first"]
    confidence_second: Float[Tensor, "height_second width_second"]

    def to(self, dtype: torch.dtype) -> "PairPrediction":
        """The same prediction with all tensors in this dtype."""
        return PairPrediction(**{field.name: getattr(self, field.name).to(dtype) for field in dataclasses.fields(self)})


@dataclass(frozen=True, eq=False, kw_only=True)
class PairPredictions:
    """Predictions of all edges of a graph, in host memory.

    Attributes:
        graph: The pairs.
        pairs: One prediction per edge, in the edges' order; float32, or float16 where asked for and representable.
    """

    graph: PairGraph
    pairs: tuple[PairPrediction, ...]

    def __post_init__(self) -> None:
        _require(
            len(self.pairs) == len(self.graph.edges),
            f"{len(self.pairs)} predictions for {len(self.graph.edges)} edges",
        )
        shapes: dict[int, torch.Size] = {}
        for (i, j), pair in zip(self.graph.edges, self.pairs, strict=True):
            for view, points in ((i, pair.points_first), (j, pair.points_second)):
                shape = shapes.setdefault(view, points.shape)
                _require(
                    points.shape == shape, f"view {view} has point maps of {tuple(shape)} and {tuple(points.shape)}"
                )

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[tuple[int, int], PairPrediction]]:
        """Edges with their predictions in float32, one converted at a time."""
        for edge, pair in zip(self.graph.edges, self.pairs, strict=True):
            yield edge, pair.to(torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(
            getattr(pair, field.name).nbytes for pair in self.pairs for field in dataclasses.fields(PairPrediction)
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Sim3:
    """A similarity, or a batch of them: `x -> scale * rotation @ x + translation`."""

    scale: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]

    def apply(self, points: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Transformed points; a batch of similarities broadcasts against the points' leading axes."""
        rotated = (self.rotation @ points[..., None])[..., 0]
        return self.scale[..., None] * rotated + self.translation

    def compose(self, inner: "Sim3") -> "Sim3":
        """The similarity that applies `inner` first and this one after it."""
        return Sim3(
            scale=self.scale * inner.scale,
            rotation=self.rotation @ inner.rotation,
            translation=self.apply(inner.translation),
        )

    def inverse(self) -> "Sim3":
        """The similarity that undoes this one."""
        rotation = self.rotation.mT
        moved_back = (rotation @ self.translation[..., None])[..., 0]
        return Sim3(scale=1.0 / self.scale, rotation=rotation, translation=-moved_back / self.scale[..., None])


@dataclass(frozen=True, eq=False, kw_only=True)
class Cameras:
    """Calibrated cameras of some views.

    Attributes:
        T_world_camera: Poses.
        K: Intrinsics in source pixels.
        sizes: (width, height) of the source photos.
    """

    T_world_camera: Float[Tensor, "views 4 4"]
    K: Float[Tensor, "views 3 3"]
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        _require_one_per_view(self, len(self.K), ["sizes"])
        _require(bool(torch.isfinite(self.T_world_camera).all()), "Cameras.T_world_camera holds NaN or infinity")
        _require(bool((self.K[:, [0, 1], [0, 1]] > 0).all()), "Cameras.K has a focal length that is not positive")

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentDiagnosis:
    """What speaks for an alignment, and what against it. Lengths are shares of `unit`.

    Attributes:
        unit: Typical depth of the scene, in the world's unit.
        edge_residuals: Per edge the median |e| of its points that count; NaN where none does.
        focal_spread_percent: Per view half the distance of the quartiles of single pairs' focal lengths.
        weighted_share: Per view the share of pixels whose fused weight is above the initial cut-off.
        baseline: Largest distance between two cameras.
        near_static: Whether the cameras hardly moved: their relative depths then are the network's word alone.
        uncut_views: Views of which too little passed the confidence cut-off, so that it was not applied to them.
        contested_views: Views that hang on edges which contradict the rest: nothing better holds them.
        scale_known: Whether the world's unit is a given one, by known poses or a known distance.
        match_count: Matched pixels that were used.
        match_error_px: Their median reprojection error in network pixels; None without matches.
        converged: Whether the solver met its tolerance.
        warnings: All of this that a person should read, in words.
    """

    unit: float
    edge_residuals: Float[Tensor, " edges"]
    focal_spread_percent: Float[Tensor, " views"]
    weighted_share: Float[Tensor, " views"]
    baseline: float
    near_static: bool
    uncut_views: tuple[int, ...]
    contested_views: tuple[int, ...]
    scale_known: bool
    match_count: int
    match_error_px: float | None
    converged: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedScene:
    """Pair predictions brought into one scene.

    Attributes:
        graph: The pairs, dropped ones included.
        cameras: One camera per view.
        depths: Depth along each view's z axis at network resolution, world unit.
        world_from_edge: sigma_e T_e of LoRA3D's Eq. 6: from the frame of each edge to the world.
        weights: For each edge the calibrated weights of its first and its second view's pixels (Eq. 8, see
            `alignment.calibrate`); 0 where masked. Those of a dropped edge are small because it is far off.
        view_weights: How far the scene's own depth can be believed, one map per view: Eq. 8 averaged over the edges,
            each laid over the scene by its own similarity.
        moving: Pixels that no static geometry explains, one map per view.
        loss_history: Objective after each accepted step: coarse grid first, then all pixels.
        history_seconds: When each of them was reached, from the beginning.
        dropped_edges: Edges left out, with the reason.
        diagnosis: What speaks for this scene, and what against it.
        refined_views: Views whose depths were corrected by comparing photos, see `alignment.stereo`.
    """

    graph: PairGraph
    cameras: Cameras
    depths: tuple[Float32[Tensor, "_ _"], ...]
    world_from_edge: Sim3
    weights: tuple[tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]], ...]
    view_weights: tuple[Float32[Tensor, "_ _"], ...]
    moving: tuple[Bool[Tensor, "_ _"], ...]
    loss_history: tuple[float, ...]
    history_seconds: tuple[float, ...]
    dropped_edges: Mapping[tuple[int, int], str]
    diagnosis: AlignmentDiagnosis
    refined_views: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_one_per_view(self, self.graph.view_count, ["cameras", "depths", "view_weights", "moving"])
        _require(len(self.weights) == len(self.graph), f"{len(self.weights)} weights for {len(self.graph)} edges")
        for view, (depth, weight) in enumerate(zip(self.depths, self.view_weights, strict=True)):
            _require(
                depth.shape == weight.shape, f"view {view}: depth {tuple(depth.shape)}, weight {tuple(weight.shape)}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class PseudoLabels:
    """What the network shall learn of this scene (LoRA3D's Eq. 9), once per view instead of once per pair.

    The point map of view v in the camera of view i is `T_i^-1 T_v D_v K_v^-1 (u, v, 1)`: see
    `lora3d_ns.pseudo_labels.label_points`. A mask that several pairs share is one tensor.

    Attributes:
        graph: The pairs that have labels.
        T_world_camera: Poses.
        K_network: Intrinsics in network pixels.
        depths: Depth along each view's z axis at network resolution, world unit.
        valid_first, valid_second: Per edge (i, j), which pixels of view i and of view j have a label.
        cutoff: The weight above which a pixel has one.
        coverage: Share of each view's unmasked pixels that have a label in some pair.
    """

    graph: PairGraph
    T_world_camera: Float32[Tensor, "views 4 4"]
    K_network: Float32[Tensor, "views 3 3"]
    depths: tuple[Float32[Tensor, "_ _"], ...]
    valid_first: tuple[Bool[Tensor, "_ _"], ...]
    valid_second: tuple[Bool[Tensor, "_ _"], ...]
    cutoff: float
    coverage: Float32[Tensor, " views"]

    def __post_init__(self) -> None:
        _require_one_per_view(self, self.graph.view_count, ["T_world_camera", "K_network", "depths", "coverage"])
        for name, end in (("valid_first", 0), ("valid_second", 1)):
            masks = getattr(self, name)
            _require(len(masks) == len(self.graph), f"{len(masks)} masks in {name} for {len(self.graph)} edges")
            for edge, mask in zip(self.graph.edges, masks, strict=True):
                _require(mask.shape == self.depths[edge[end]].shape, f"edge {edge}: {name} has not its view's shape")


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """What a reconstruction leaves behind, at the photos' own resolution.

    Attributes:
        names: Names of the views.
        cameras: Cameras at source resolution.
        points: World points of the weighted cloud.
        colors: Their sRGB colours.
        point_weights: Their calibrated weights.
        point_views: The view each point was seen in.
        provenance: Settings, versions and stages that made the scene; plain values only.
        format_version: Version of the on-disk format.
    """

    names: tuple[str, ...]
    cameras: Cameras
    points: Float32[Tensor, "points 3"]
    colors: UInt8[Tensor, "points 3"]
    point_weights: Float32[Tensor, " points"]
    point_views: Int32[Tensor, " points"]
    provenance: Mapping[str, object]
    format_version: int

    def __post_init__(self) -> None:
        _require_one_per_view(self, len(self.names), ["cameras"])
