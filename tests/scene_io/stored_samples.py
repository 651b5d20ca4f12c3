"""Small random instances of everything that is kept on disk, and what it means that two are the same."""

import dataclasses
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.scene_io.details import BeforeLearning, LearningDetails, SceneDetails
from lora3d_ns.types import (
    AlignedScene,
    AlignmentDiagnosis,
    Cameras,
    PairGraph,
    PairPrediction,
    PairPredictions,
    PseudoLabels,
    Scene,
    Sim3,
)

SHAPES = ((4, 6), (5, 3), (4, 6))
EDGES = ((0, 1), (1, 0), (1, 2), (2, 1))


def samples(seed: int = 0) -> dict[str, object]:
    """One instance of each type, by the type's name."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*shape, generator=generator).to(dtype)

    graph = PairGraph(view_count=3, edges=EDGES)
    pairs = tuple(
        PairPrediction(
            points_first=rand(*SHAPES[i], 3, dtype=dtype),
            points_second=rand(*SHAPES[j], 3, dtype=dtype),
            confidence_first=rand(*SHAPES[i], dtype=dtype),
            confidence_second=rand(*SHAPES[j], dtype=dtype),
        )
        for (i, j), dtype in zip(EDGES, (torch.float32, torch.float16, torch.float64, torch.bfloat16), strict=True)
    )
    cameras = Cameras(
        T_world_camera=rand(3, 4, 4, dtype=torch.float64),
        K=rand(3, 3, 3) + 1.0,
        sizes=((60, 40), (30, 50), (60, 40)),
    )
    similarity = Sim3(scale=rand(4), rotation=rand(4, 3, 3), translation=rand(4, 3))
    diagnosis = AlignmentDiagnosis(
        unit=0.1 + 0.2,
        edge_residuals=torch.tensor([0.5, float("nan"), -0.0, float("inf")]),
        focal_spread_percent=rand(3),
        weighted_share=rand(3),
        baseline=float("inf"),
        near_static=False,
        uncut_views=(),
        contested_views=(2,),
        scale_known=True,
        match_count=2**60,
        match_error_px=None,
        converged=True,
        warnings=("„Wörter“\n", "\udcff \x00"),
    )
    shared = rand(*SHAPES[0])
    scene = AlignedScene(
        graph=graph,
        cameras=cameras,
        depths=(shared, rand(*SHAPES[1]), rand(6, 4).mT),
        world_from_edge=similarity,
        weights=tuple((rand(*SHAPES[i]), rand(*SHAPES[j])) for i, j in EDGES),
        view_weights=(shared, rand(*SHAPES[1]), rand(*SHAPES[2])),
        moving=tuple(rand(*shape) > 0.5 for shape in SHAPES),
        loss_history=(3.0, 1e-300, -0.0, float("nan")),
        history_seconds=(),
        dropped_edges={(1, 2): "it contradicts the rest", (0, 1): ""},
        diagnosis=diagnosis,
    )
    labels = PseudoLabels(
        graph=graph,
        T_world_camera=rand(3, 4, 4),
        K_network=rand(3, 3, 3),
        depths=tuple(rand(*shape) for shape in SHAPES),
        valid_first=tuple(rand(*SHAPES[i]) > 0.5 for i, _ in EDGES),
        valid_second=tuple(rand(*SHAPES[j]) > 0.5 for _, j in EDGES),
        cutoff=0.25,
        coverage=rand(3),
    )
    finished = finished_scene(seed)
    everything = (graph, pairs[1], PairPredictions(graph=graph, pairs=pairs), cameras, similarity, diagnosis)
    details = finished_details(finished, seed)
    assert details.learning is not None
    looked_at = (details.source_from_network[0], details.learning.before, details.learning, details)
    return {type(value).__name__: value for value in (*everything, scene, labels, finished, *looked_at)}


def finished_scene(seed: int = 0, *, points: int = 50) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    return Scene(
        names=("a/1.png", "ü 2.png"),
        cameras=Cameras(
            T_world_camera=torch.rand(2, 4, 4, generator=generator),
            K=torch.rand(2, 3, 3, generator=generator, dtype=torch.float64) + 1.0,
            sizes=((64, 48), (48, 64)),
        ),
        points=torch.rand(points, 3, generator=generator),
        colors=torch.randint(256, (points, 3), generator=generator).to(torch.uint8),
        point_weights=torch.rand(points, generator=generator),
        point_views=torch.randint(2, (points,), generator=generator).to(torch.int32),
        provenance={"settings": {"mu": 0.01, "dropped": None, "targets": ["a", "b"]}, "seed": seed, "gpu": False},
        format_version=1,
    )


def finished_details(scene: Scene, seed: int = 0) -> SceneDetails:
    """Details of `finished_scene`, with everything that may be missing."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (4, 3))

    def maps(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        return tuple(torch.rand(*shape, generator=generator).to(dtype) for shape in shapes)

    diagnosis = AlignmentDiagnosis(
        unit=2.5,
        edge_residuals=torch.tensor([0.5, float("nan")]),
        focal_spread_percent=torch.ones(2),
        weighted_share=torch.ones(2),
        baseline=0.4,
        near_static=False,
        uncut_views=(1,),
        contested_views=(),
        scale_known=False,
        match_count=7,
        match_error_px=0.5,
        converged=True,
        warnings=("a warning",),
    )
    learning = LearningDetails(
        before=BeforeLearning(
            cameras=scene.cameras,
            depths=maps(),
            weights=maps(torch.float16),
            moving=tuple(values > 0.5 for values in maps()),
            diagnosis=diagnosis,
        ),
        losses=(2.0, 1.0 + seed),
        held_out=((0, 1),),
        held_out_errors=(0.25, 0.125),
        best_epoch=1,
        gate={"accepted": True, "reason": "", "before": {"label_error": None, "matches": 3}},
        label_coverage=torch.rand(2, generator=generator),
        label_cutoff=0.75,
    )
    return SceneDetails(
        names=scene.names,
        images=tuple((255 * image).to(torch.uint8)[..., None].repeat(1, 1, 3) for image in maps()),
        masks=(None, maps()[1] > 0.5),
        source_from_network=(
            PixelAffine(scale_x=16.0, scale_y=16.0, offset_x_px=-0.5, offset_y_px=0.0),
            PixelAffine(scale_x=16.0, scale_y=15.5, offset_x_px=0.0, offset_y_px=2.0),
        ),
        focal_px=torch.tensor([60.0, 61.0]),
        depths=maps(),
        weights=maps(torch.float16),
        confidences=maps(torch.float16),
        residuals=maps(),
        moving=tuple(values > 0.5 for values in maps()),
        edges=((0, 1), (1, 0)),
        overlap=torch.tensor([0.5, 0.5]),
        dropped={(1, 0): "it contradicts the rest"},
        losses=(3.0, 1e-300),
        seconds=(0.1, 0.2),
        diagnosis=diagnosis,
        learning=learning,
        format_version=1,
    )


def assert_same(found: object, wanted: object) -> None:
    """Both hold the same bit for bit; mappings may have become dicts."""
    if isinstance(wanted, Tensor):
        assert isinstance(found, Tensor)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.is_contiguous()
        as_items = [values.flatten().clone(memory_format=torch.contiguous_format) for values in (found, wanted)]
        assert not found.numel() or torch.equal(*(values.view(torch.uint8) for values in as_items))
    elif dataclasses.is_dataclass(wanted):
        assert type(found) is type(wanted)
        for field in dataclasses.fields(wanted):
            assert_same(getattr(found, field.name), getattr(wanted, field.name))
    elif isinstance(wanted, Mapping):
        assert isinstance(found, Mapping)
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, (tuple, list)):
        assert type(found) is type(wanted)
        assert isinstance(found, (tuple, list))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert isinstance(found, float)
        assert struct.pack("<d", found) == struct.pack("<d", wanted)
    else:
        assert type(found) is type(wanted)
        assert found == wanted
