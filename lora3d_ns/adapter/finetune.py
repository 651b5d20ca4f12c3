"""PseudoLabels -> Adapter: a few minutes of LoRA on what the network itself said of this scene, made consistent.

The recipe of LoRA3D (arXiv 2412.07746, Sec. 4) is `FineTuneSettings.paper()`. The default takes more pairs per step,
encodes each image of a step once, and stops when pairs that are held out no longer gain; both are compared in
BENCHMARKS.md.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lora3d_ns.adapter.activation_memory import free_bytes, planned_memory
from lora3d_ns.adapter.finetune_checkpoint import FineTuneState, read_state, write_state
from lora3d_ns.adapter.finetune_settings import FineTuneSettings
from lora3d_ns.adapter.lessons import Edge, Lessons, split_pairs, steps_of_epoch
from lora3d_ns.adapter.lora import Adapter, adapted, adapter_of, with_adapter
from lora3d_ns.errors import AdapterError, FineTuningError, InsufficientMemoryError
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.predict import autocast_of, unless_out_of_memory
from lora3d_ns.progress import progress_bar
from lora3d_ns.scene_io.stage_cache import fingerprint
from lora3d_ns.types import PairGraph, PseudoLabels, Views

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_BETAS = (0.9, 0.95)
_SAVE_EVERY_S = 30.0
_MOST_ROLLBACKS = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuned:
    """An adapter and how it came about.

    Attributes:
        adapter: Of the best epoch.
        losses: Objective of each step of every epoch that counts, in order.
        held_out: The pairs that no step saw.
        held_out_errors: Mean normalised distance from the labels of those pairs, before any step and after each
            epoch; empty without held-out pairs.
        best_epoch: Whose adapter it is; 0 is the network as it was, or the adapter that training went on from.
        rollbacks: How often a loss that was not finite took training back to the last good epoch.
        recomputed: Whether activations were computed again to save memory.
        seconds: Active time, over all runs if it was interrupted.
    """

    adapter: Adapter
    losses: tuple[float, ...]
    held_out: tuple[Edge, ...]
    held_out_errors: tuple[float, ...]
    best_epoch: int
    rollbacks: int
    recomputed: bool
    seconds: float


def finetune(
    views: Views,
    labels: PseudoLabels,
    network: Dust3r,
    settings: FineTuneSettings | None = None,
    *,
    base_name: str,
    base_fingerprint: str | None = None,
    provenance: dict[str, object] | None = None,
    checkpoint: Path | None = None,
    begun_from: FineTuned | None = None,
) -> FineTuned:
    """Trains an adapter to predict the labels: `min over A, B of mean_p (C_p l_p - alpha log C_p)` (LoRA3D, Eq. 12).

    The same arguments, machine and number of threads give the same adapter, interrupted or not. The network is left as
    it is.

    Args:
        views: The photos.
        labels: What to learn, of these photos.
        network: The base.
        settings: How to train.
        base_name: What the base is called, for the adapter's files.
        base_fingerprint: `network_fingerprint(network)` where it is known already.
        provenance: Plain values that the adapter shall remember.
        checkpoint: File in which training leaves its state; if it holds that of the same network, labels and settings,
            training goes on from there.
        begun_from: What was learnt before, of the same network and photos: its matrices are where training begins, and
            the pairs that it held out stay so. By default training begins with the network as it is.

    Raises:
        AdapterBaseError: `begun_from` is of another network.
        AdapterError: It is of other layers, rank or alpha than the settings.
        FineTuningError: The loss is not finite however small the steps.
        InsufficientMemoryError: Not even one pair fits into memory.
        InvalidDataError: The labels are of other photos.
    """
    settings = settings or FineTuneSettings()
    of_base = base_fingerprint or network_fingerprint(network)
    if begun_from is None:
        learner = adapted(network, settings.lora, seed=settings.seed)
    else:
        if begun_from.adapter.settings != settings.lora:
            raise AdapterError(
                f"an adapter with {begun_from.adapter.settings} does not go on with {settings.lora}",
                way_out="Use the rank, alpha and layers that it was made with",
            )
        learner = with_adapter(network, begun_from.adapter, fingerprint=of_base)
    run = _run(views, labels, learner, settings, held_out=None if begun_from is None else begun_from.held_out)
    key = "" if checkpoint is None else _key(views, labels, settings, of_base, begun_from)
    state = run.train(checkpoint, key=key)
    run.set_matrices(state.best)
    adapter = adapter_of(
        run.network,
        base_name=base_name,
        base_fingerprint=of_base,
        provenance={
            "epochs": state.best_epoch,
            "steps": len(state.losses),
            "label_cutoff": labels.cutoff,
            "label_coverage": float(labels.coverage.mean()),
            "seed": settings.seed,
            **(provenance or {}),
        },
    )
    return FineTuned(
        adapter=adapter,
        losses=tuple(state.losses),
        held_out=tuple(run.held_out),
        held_out_errors=tuple(state.held_out_errors),
        best_epoch=state.best_epoch,
        rollbacks=state.rollbacks,
        recomputed=run.network.recompute_activations,
        seconds=state.seconds,
    )


def train_in_place(
    views: Views, labels: PseudoLabels, network: Dust3r, settings: FineTuneSettings | None = None
) -> tuple[float, ...]:
    """`finetune` of whatever of a network asks for gradients; afterwards it is as after its best epoch.

    For comparisons: all weights instead of an adapter, other parametrisations.

    Returns:
        Errors of the pairs held out, before any step and after each epoch.

    Raises:
        FineTuningError: The loss is not finite however small the steps.
        InsufficientMemoryError: Not even one pair fits into memory.
        InvalidDataError: The labels are of other photos.
    """
    run = _run(views, labels, network, settings or FineTuneSettings())
    state = run.train(None, key="")
    run.set_matrices(state.best)
    return tuple(state.held_out_errors)


def _run(
    views: Views,
    labels: PseudoLabels,
    network: Dust3r,
    settings: FineTuneSettings,
    *,
    held_out: Sequence[Edge] | None = None,
) -> "_Run":
    lessons = Lessons(
        views,
        labels,
        network.device,
        confidence_alpha=settings.confidence_alpha,
        triplet_weight=settings.triplet_weight,
    )
    # Divided after those without a label are gone: what is left to learn must not be one of them.
    with_labels = PairGraph(view_count=len(views), edges=tuple(lessons.with_labels(labels.graph.edges)))
    if held_out is None:
        learning, held_out = split_pairs(with_labels, settings.held_out_share, settings.seed)
    else:
        # Drawn anew, some would be pairs that have been learnt already.
        learning = [edge for edge in with_labels.edges if edge not in held_out]
        held_out = [edge for edge in with_labels.edges if edge in held_out]
    return _Run(settings, lessons, network, learning, held_out)


def _key(
    views: Views,
    labels: PseudoLabels,
    settings: FineTuneSettings,
    base_fingerprint: str,
    begun_from: FineTuned | None,
) -> str:
    return fingerprint("finetune", views.images, labels, settings, base_fingerprint, beginning(begun_from))


def beginning(begun_from: FineTuned | None) -> object:
    """What of an earlier training decides about the one that goes on from it, for a fingerprint."""
    return None if begun_from is None else (dict(begun_from.adapter.tensors), begun_from.held_out)


class _Run:
    """One training: the network that learns, its optimiser, and what a step does."""

    def __init__(
        self,
        settings: FineTuneSettings,
        lessons: Lessons,
        network: Dust3r,
        learning: Sequence[Edge],
        held_out: Sequence[Edge],
    ) -> None:
        self.settings = settings
        self.lessons = lessons
        self.network = network
        self.learning = list(learning)
        self.held_out = list(held_out)
        plan = planned_memory(
            network.config,
            settings.lora,
            max(lessons.shapes, key=lambda shape: shape[0] * shape[1]),
            pairs=settings.pairs_per_step,
            free=free_bytes(network.device),
            may_recompute=settings.recompute_activations == "auto",
        )
        self.network.recompute_activations = settings.recompute_activations == "on" or plan.recompute_activations
        self.pairs_at_once = plan.pairs_at_once
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=_BETAS, weight_decay=settings.weight_decay
        )

    # --- state ------------------------------------------------------------------------------------

    def matrices(self) -> list[Tensor]:
        """Copies of what is learnt, on the host."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]

    def set_matrices(self, matrices: Sequence[Tensor]) -> None:
        """Puts them back."""
        with torch.no_grad():
            for parameter, matrix in zip(self.parameters, matrices, strict=True):
                parameter.copy_(matrix)

    def _begin(self) -> FineTuneState:
        matrices = self.matrices()
        errors = [self._held_out_error()] if self.held_out else []
        return FineTuneState(
            matrices=matrices,
            optimizer=self.optimizer.state_dict(),
            best=matrices,
            held_out_errors=errors,
        )

    # --- training ---------------------------------------------------------------------------------

    def train(self, checkpoint: Path | None, *, key: str) -> FineTuneState:
        """Trains to the end, from the checkpoint if it is of this key."""
        settings = self.settings
        stored = None if checkpoint is None else read_state(checkpoint, key)
        if stored is None:
            state = self._begin()
            # What a loss that is not finite takes training back to.
            good = state.copy()
        else:
            state, good = stored
        self._take_over(state)
        steps_per_epoch = len(self._steps(0))
        total = steps_per_epoch * settings.epochs
        before, begun, saved = state.seconds, time.perf_counter(), time.perf_counter()

        def keep() -> None:
            nonlocal saved
            state.seconds = before + time.perf_counter() - begun
            if checkpoint is not None:
                # Between epochs the two are the same.
                write_state(checkpoint, key, state, good if state.position else None)
                saved = time.perf_counter()

        with progress_bar("Fine-tuning", total, shown=settings.show_progress) as advance:
            advance(len(state.losses))
            while state.epoch < settings.epochs and not self._done(state):
                steps = self._steps(state.epoch)
                for position in range(state.position, len(steps)):
                    rate = self._learning_rate(len(state.losses), total) * 0.5**state.rollbacks
                    loss = self._step(steps[position], rate)
                    if not math.isfinite(loss):
                        break
                    state.losses.append(loss)
                    state.position = position + 1
                    advance(1)
                    if checkpoint is not None and time.perf_counter() - saved > _SAVE_EVERY_S:
                        self._note(state)
                        keep()
                else:
                    self._end_epoch(state)
                    if math.isfinite(sum(float(matrix.sum()) for matrix in state.matrices)):
                        good = state.copy()
                        keep()
                        continue
                lost = len(state.losses) - len(good.losses)
                state = self._roll_back(good, state.rollbacks + 1)
                advance(-lost)
                good = state.copy()
        state.seconds = before + time.perf_counter() - begun
        return state

    def _done(self, state: FineTuneState) -> bool:
        """Whether nothing is to be learnt, or the pairs held out have stopped gaining."""
        if not self.learning:
            return True
        return bool(self.held_out) and state.epoch - state.best_epoch >= self.settings.patience

    def _steps(self, epoch: int) -> list[list[Edge]]:
        settings = self.settings
        return steps_of_epoch(
            self.learning,
            settings.pairs_per_step,
            both_orders=settings.share_encodings,
            seed=settings.seed * 1_000_003 + epoch,
        )

    def _learning_rate(self, step: int, total: int) -> float:
        """Cosine from the first to the final rate."""
        first, last = self.settings.learning_rate, self.settings.final_learning_rate
        return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total))))

    def _note(self, state: FineTuneState) -> None:
        state.matrices, state.optimizer = self.matrices(), self.optimizer.state_dict()

    def _end_epoch(self, state: FineTuneState) -> None:
        state.epoch, state.position = state.epoch + 1, 0
        self._note(state)
        if self.held_out:
            state.held_out_errors.append(self._held_out_error())
        # Without held-out pairs the last epoch is the best.
        if not self.held_out or state.held_out_errors[-1] <= min(state.held_out_errors):
            state.best, state.best_epoch = state.matrices, state.epoch

    def _take_over(self, state: FineTuneState) -> None:
        self.set_matrices(state.matrices)
        self.optimizer.load_state_dict(state.optimizer)

    def _roll_back(self, good: FineTuneState, rollbacks: int) -> FineTuneState:
        if rollbacks > _MOST_ROLLBACKS:
            raise FineTuningError(
                f"the loss was not finite {rollbacks} times, at last with a learning rate of "
                f"{self.settings.learning_rate * 0.5 ** (rollbacks - 1):.2g}",
                way_out="Fine-tune in float32 with a smaller learning rate, or use the robust alignment (arm `robust`)",
            )
        logger.warning("the loss is not finite: back to epoch %d, with half the learning rate", good.epoch)
        state = good.copy()
        state.rollbacks = rollbacks
        self._take_over(state)
        return state

    def _held_out_error(self) -> float:
        return self._in_memory(self._error_of, self.held_out)

    def _error_of(self, edges: Sequence[Edge]) -> float:
        with torch.no_grad(), autocast_of(self.network, self.settings.precision):
            errors = [
                self.lessons.errors(self.network, edges[start : start + self.pairs_at_once])
                for start in range(0, len(edges), self.pairs_at_once)
            ]
        return float(torch.cat(errors).mean())

    def _step(self, edges: Sequence[Edge], rate: float) -> float:
        """One step; its objective. Nothing is changed where the objective or its gradient is not finite."""
        objective = self._in_memory(self._gradient, edges)
        norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        )
        # Read together: the only time in a step that the GPU is waited for.
        loss, length = torch.stack([objective, norm.to(objective)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(length)):
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss

    def _gradient(self, edges: Sequence[Edge]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[Tensor] = []
        for start in range(0, len(edges), self.pairs_at_once):
            part = edges[start : start + self.pairs_at_once]
            with autocast_of(self.network, self.settings.precision):
                loss = self.lessons.objective(self.network, part, share_encodings=self.settings.share_encodings) * (
                    len(part) / len(edges)
                )
            loss.backward()
            parts.append(loss.detach())
        return torch.stack(parts).sum()

    def _in_memory(self, work: Callable[[Sequence[Edge]], _Result], edges: Sequence[Edge]) -> _Result:
        """What `work` returns, tried with less and less memory."""
        while True:
            value = unless_out_of_memory(work, edges)
            # The error is gone by now, and with it the activations that its traceback held.
            if value is not None:
                return value
            self._save_memory()

    def _save_memory(self) -> None:
        """Does with less memory than before."""
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.network.recompute_activations and self.settings.recompute_activations == "auto":
            logger.warning("out of memory: activations are computed again from here on")
            self.network.recompute_activations = True
            return
        if self.pairs_at_once == 1:
            raise InsufficientMemoryError(
                "the gradient of one pair does not fit into memory",
                way_out="Allow recompute_activations, use a smaller photo size, or free memory held by other programs",
            )
        self.pairs_at_once = (self.pairs_at_once + 1) // 2
        logger.warning("out of memory: going on with %d pairs at once", self.pairs_at_once)
