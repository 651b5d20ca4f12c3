from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pictures import draw_against_truth, draw_pair_predictions
from lora3d_ns.types import PairPrediction, PairPredictions, Views


def predictions_for(views: Views) -> PairPredictions:
    graph = build_pair_graph(CompleteGraph(), len(views))
    pairs = []
    for i, j in graph.edges:
        first, second = views.shapes[i], views.shapes[j]
        pairs.append(
            PairPrediction(
                points_first=torch.rand(*first, 3) + 1.0,
                points_second=torch.rand(*second, 3) + 1.0,
                confidence_first=torch.rand(*first),
                confidence_second=torch.rand(*second),
            )
        )
    return PairPredictions(graph=graph, pairs=tuple(pairs))


def colors_in(path: Path) -> int:
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def test_pictures_show_something_for_every_shape_of_photo(make_views, tmp_path: Path) -> None:
    views = make_views([(16, 32), (32, 16), (32, 32)])
    predictions = predictions_for(views)
    draw_pair_predictions(views, predictions, [(0, 1), (2, 0)], tmp_path / "pairs.png", title="two pairs")
    truth = {edge: (pair.points_first, pair.points_second) for edge, pair in predictions}
    draw_against_truth(views, predictions, truth, tmp_path / "truth.png", title="all pairs")
    # A blank page has one colour; photos, two colour maps and bars have thousands.
    assert colors_in(tmp_path / "pairs.png") > 1000
    assert colors_in(tmp_path / "truth.png") > 1000


@pytest.mark.parametrize("edges", [[], [(0, 2)]])
def test_pairs_without_prediction_are_refused(make_views, tmp_path: Path, edges: list) -> None:
    views = make_views([(16, 16), (16, 16)])
    with pytest.raises(InvalidDataError):
        draw_pair_predictions(views, predictions_for(views), edges, tmp_path / "nothing.png", title="nothing")
    assert not (tmp_path / "nothing.png").exists()
