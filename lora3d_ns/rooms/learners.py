"""Other ways to learn a scene's labels, to compare the adapter with; for benchmarks only, nothing of them is kept."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora3d_ns.adapter.adapter import target_layers
from lora3d_ns.adapter.finetune import FineTuneSettings, train_in_place
from lora3d_ns.adapter.lora import LoraSettings
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.types import PairGraph, PseudoLabels, Views

Learner = Literal["adapter", "all_weights", "norm_preserving"]


class NormPreservingChange(nn.Module):
    """`W' = (W + dW) |W| / |W + dW|` with `dW = (alpha / rank) B A` and the Frobenius norm (Fin3R, arXiv 2511.22429).

    Args:
        weight: W.
        settings: Rank and alpha.
        generator: Of A, drawn as in `adapter.lora.adapted`; B begins at zero.
    """

    def __init__(self, weight: Tensor, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        bound = weight.shape[1] ** -0.5
        self.a = nn.Parameter(torch.empty(settings.rank, weight.shape[1]).uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], settings.rank))
        self.scaling = settings.scaling

    def forward(self, weight: Tensor) -> Tensor:
        """W'."""
        changed = weight + self.scaling * (self.b @ self.a)
        return changed * (weight.norm() / changed.norm())


def learnt_with_all_weights(
    network: Dust3r, views: Views, labels: PseudoLabels, settings: FineTuneSettings
) -> tuple[Dust3r, int]:
    """(a copy of the network of which every weight has learnt the labels, how many these are)."""
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    train_in_place(views, labels, copied, settings)
    return _frozen(copied), sum(parameter.numel() for parameter in copied.parameters())


def learnt_norm_preserving(
    network: Dust3r, views: Views, labels: PseudoLabels, settings: FineTuneSettings
) -> tuple[Dust3r, int]:
    """(a copy of the network with norm-preserving changes that have learnt the labels, numbers in their matrices)."""
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(settings.seed)
    changes = []
    for layer in target_layers(copied, settings.lora.targets).values():
        changes.append(NormPreservingChange(layer.weight, settings.lora, generator).to(layer.weight.device))
        parametrize.register_parametrization(layer, "weight", changes[-1])
    train_in_place(views, labels, copied, settings)
    return _frozen(copied), sum(parameter.numel() for change in changes for parameter in change.parameters())


def _frozen(network: Dust3r) -> Dust3r:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def joined(scenes: Sequence[tuple[Views, PseudoLabels]]) -> tuple[Views, PseudoLabels]:
    """Photos and labels of several scenes as one set, with the pairs of each scene and none across.

    Only relative poses of a pair are ever looked at, so that the scenes need no common world.

    Raises:
        InvalidDataError: There is no scene.
    """
    if not scenes:
        raise InvalidDataError("no scene to learn", way_out="Give one or more")
    edges: list[tuple[int, int]] = []
    before = 0
    for views, labels in scenes:
        edges += [(i + before, j + before) for i, j in labels.graph.edges]
        before += len(views)
    fields = {
        field.name: tuple(entry for views, _ in scenes for entry in getattr(views, field.name))
        for field in dataclasses.fields(Views)
    }
    fields["names"] = tuple(f"{k}-{name}" for k, (views, _) in enumerate(scenes) for name in views.names)
    all_labels = [labels for _, labels in scenes]
    return replace(scenes[0][0], **fields), PseudoLabels(
        graph=PairGraph(view_count=before, edges=tuple(edges)),
        T_world_camera=torch.cat([labels.T_world_camera for labels in all_labels]),
        K_network=torch.cat([labels.K_network for labels in all_labels]),
        depths=tuple(depth for labels in all_labels for depth in labels.depths),
        valid_first=tuple(mask for labels in all_labels for mask in labels.valid_first),
        valid_second=tuple(mask for labels in all_labels for mask in labels.valid_second),
        cutoff=max(labels.cutoff for labels in all_labels),
        coverage=torch.cat([labels.coverage for labels in all_labels]),
    )
