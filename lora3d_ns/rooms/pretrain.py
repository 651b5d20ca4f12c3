"""Training of the bundled network from scratch on rooms: `lora3d pretrain`.

Each step draws some photos of some rooms, encodes each photo once, decodes all ordered pairs within each room, and
minimises `pretrain_loss`. The learning rate warms up, stays, and decays at the end ("warmup, stable, decay"): unlike a
cosine, this can be stopped and extended at will, since nothing before the decay depends on how long it will be. A
moving average of the weights (EMA) is what is validated and exported.

On a CPU the rooms of a step are shared out among threads, each of which works its own share with single-threaded
operations: on small tensors this is several times faster than threads within each operation, above all while other
programs use the same cores. Gradients are added in a fixed order, so results do not depend on which thread is faster.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lora3d_ns.errors import SettingsError
from lora3d_ns.network.checkpoint_architecture import config_from_json, json_from_config
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.pretrain_checkpoints import (
    TrainingLog,
    UnusableTrainingError,
    draw_curves,
    read_newest_checkpoint,
    write_checkpoint,
)
from lora3d_ns.rooms.pretrain_data import (
    GroupSampling,
    RenderedRooms,
    RoomViewGroups,
    RoomViewSettings,
    RoomViewSource,
    cache_rooms,
    photos_and_pairs,
)
from lora3d_ns.rooms.pretrain_loss import pair_truth, pretrain_loss
from lora3d_ns.rooms.validation import ValidationPairs, headline, sample_validation_pairs, validate

_LOGGER = logging.getLogger(__name__)
_CHECKPOINT_FORMAT = 1
_LOG_FILE = "log.jsonl"
_CURVES_FILE = "curves.png"
# A pause of the whole process (SIGSTOP, a laptop that sleeps) is no training time.
_LONGEST_COUNTED_STEP_S = 30.0

ROOMS_CONFIG = Dust3rConfig(
    patch_size=8,
    encoder_width=128,
    encoder_depth=4,
    encoder_heads=4,
    decoder_width=128,
    decoder_depth=3,
    decoder_heads=4,
    head="linear",
    descriptor_width=64,
    image_size=64,
)
"""The bundled network: small enough to be trained, and used, on two cores."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything that decides a training.

    Attributes:
        folder: Where checkpoints, log and curves go. A training found there is continued.
        photo_folder: Where photos are cached on a CPU (None: in the folder).
        network: Configuration of the network; needs a descriptor_width unless matching_weight is 0.
        start_from: Weights to begin with where the folder has no checkpoint, as `load_network` names them (`rooms`
            trains the bundled network on); random ones if None.
        photos: Which rooms and photos.
        sampling: What a step draws of them.
        steps: Length of the whole training in steps.
        minutes: Ends it earlier, after so much active time over all runs (None: never). Pauses do not count.
        learning_rate: Of the stable phase.
        warmup_steps: Linear from 0.
        decay_share: Share of the training, at its end, over which the learning rate falls linearly to a hundredth.
        betas: Of AdamW.
        weight_decay: Decoupled; on matrices only.
        clip_norm: Gradients longer than this are shortened to it.
        ema_decay: The average keeps this share of itself in each step, less in the first steps.
        confidence_alpha: alpha of DUSt3R's confidence loss.
        matching_weight, matching_temperature: Of the matching objective.
        matching_half_life_steps: The matching weight is halved after so many steps, and again (None: constant).
        mixed_precision: bfloat16 where torch's autocast has it; attention on a CPU stays in float32, which is faster.
        seed: Of the initial weights.
        device: Where to train.
        threads: CPU threads, each with its share of a step's rooms (None: as many as there are cores and as share
            the rooms evenly). On a GPU it is not used.
        checkpoint_every, log_every, validate_every: In steps.
        validation_pairs: Unseen pairs of each validated domain.
        validation_domains: Names of the domains.
        resume: Whether to go on from the folder's newest checkpoint, if it has one.
        show_progress: Whether to draw a bar.
    """

    folder: Path
    photo_folder: Path | None = None
    network: Dust3rConfig = ROOMS_CONFIG
    start_from: str | Path | None = None
    photos: RoomViewSettings = field(default_factory=RoomViewSettings)
    sampling: GroupSampling = field(default_factory=GroupSampling)
    steps: int = 20_000
    minutes: float | None = None
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_share: float = 0.15
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    confidence_alpha: float = 0.2
    matching_weight: float = 0.3
    matching_temperature: float = 0.07
    matching_half_life_steps: int | None = None
    mixed_precision: bool = True
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    checkpoint_every: int = 250
    log_every: int = 20
    validate_every: int = 1000
    validation_pairs: int = 200
    validation_domains: tuple[str, ...] = ("nominal",)
    resume: bool = True
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "log_every", "validate_every", "validation_pairs"):
            self._check(getattr(self, name) >= 1, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "confidence_alpha", "matching_temperature"):
            self._check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "matching_weight", "seed"):
            self._check(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        self._check(self.minutes is None or self.minutes > 0, f"minutes must be positive, not {self.minutes}")
        self._check(0 <= self.decay_share <= 1, f"decay_share must lie within 0 and 1, not {self.decay_share}")
        self._check(0 <= self.ema_decay < 1, f"ema_decay must lie within 0 and 1, not {self.ema_decay}")
        self._check(all(0 <= beta < 1 for beta in self.betas), f"betas must lie within 0 and 1, not {self.betas}")
        self._check(
            self.matching_half_life_steps is None or self.matching_half_life_steps > 0,
            f"matching_half_life_steps must be positive, not {self.matching_half_life_steps}",
        )
        self._check(
            self.matching_weight == 0 or self.network.descriptor_width > 0,
            "the matching objective needs a network with descriptor_width > 0",
        )
        self._check(
            self.photos.image_size_px % self.network.patch_size == 0,
            f"photos of {self.photos.image_size_px} px do not divide into patches of {self.network.patch_size}",
        )
        self._check(self.threads is None or self.threads >= 1, f"threads must be positive, not {self.threads}")
        self._check(
            self.sampling.rooms_per_step % self.shards == 0,
            f"{self.sampling.rooms_per_step} rooms per step cannot be shared among {self.threads} threads",
        )
        short = self.sampling.short_side_px(self.photos.image_size_px)
        self._check(
            self.sampling.phone_share == 0 or short % self.network.patch_size == 0,
            f"photos of 4:3 with a short side of {short} px do not divide into patches of {self.network.patch_size}",
        )
        self._check(len(self.validation_domains) > 0, "validation_domains is empty")

    @property
    def shards(self) -> int:
        """Into how many parts the rooms of a step are shared out."""
        if torch.device(self.device).type != "cpu":
            return 1
        if self.threads is not None:
            return self.threads
        rooms = self.sampling.rooms_per_step
        return max(count for count in range(1, (os.cpu_count() or 1) + 1) if rooms % count == 0)

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, by steps or by time, whichever is further."""
        by_time = 0.0 if self.minutes is None else seconds / (60.0 * self.minutes)
        return max(step / self.steps, by_time)

    def learning_rate_at(self, step: int, seconds: float) -> float:
        """Learning rate of a step: warmup, stable, decay."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decaying = (
            (self.progress(step, seconds) - (1.0 - self.decay_share)) / self.decay_share if self.decay_share else 0
        )
        return self.learning_rate * warmup * max(0.01, 1.0 - max(0.0, decaying))

    def matching_weight_at(self, step: int) -> float:
        """Weight of the matching objective in a step."""
        if self.matching_half_life_steps is None:
            return self.matching_weight
        return self.matching_weight * 0.5 ** (step / self.matching_half_life_steps)

    def _check(self, condition: bool, problem: str) -> None:
        if not condition:
            raise SettingsError(problem, way_out="Change the settings of the pretraining")


@dataclass(frozen=True, eq=False, kw_only=True)
class PretrainResult:
    """What a training leaves behind.

    Attributes:
        network: With the averaged (EMA) weights, in evaluation mode, on the host.
        step, pairs: Steps done and ordered pairs seen, over all runs.
        seconds: Active time over all runs.
        validation: Metrics by domain after the last step; see `lora3d_ns.rooms.validation.validate`.
        log: The JSON lines.
    """

    network: Dust3r
    step: int
    pairs: int
    seconds: float
    validation: dict[str, dict[str, Any]]
    log: Path


def run_pretraining(settings: PretrainSettings) -> PretrainResult:
    """Train the bundled network, or go on training it.

    Minimises `mean(C l - alpha log C) + w InfoNCE` over ordered pairs (i, j) of photos of a room, with l the distance
    between predicted and true points of both photos in camera i's frame, each normalised by the pair's mean distance
    (DUSt3R, arXiv 2312.14132; MASt3R, arXiv 2406.09756, for the matching).

    A step is fixed by the settings and its number: a training that was killed goes on from its last checkpoint as if
    nothing had happened, bit for bit on a CPU as long as `minutes` is None and settings and thread count are the same.

    Raises:
        SettingsError: A setting makes no sense.
        UnusableTrainingError: The folder holds another network's training, or only damaged checkpoints.
    """
    device = torch.device(settings.device)
    source = _photo_source(settings, device)
    validation = {
        name: sample_validation_pairs(
            name, settings.validation_pairs, image_size_px=settings.photos.image_size_px, device=device
        ).to("cpu")
        for name in settings.validation_domains
    }
    with _single_threaded_operations(device):
        trainer = _Trainer(settings, source, device)
        resumed = trainer.resume() if settings.resume else False
        log = TrainingLog(settings.folder / _LOG_FILE, resumed_step=trainer.step)
        _LOGGER.info("%s at step %d", "going on" if resumed else "beginning", trainer.step)
        metrics = trainer.train(log, validation)
    return PretrainResult(
        network=trainer.averaged_network(),
        step=trainer.step,
        pairs=trainer.pairs,
        seconds=trainer.seconds,
        validation=metrics,
        log=log.path,
    )


def load_averaged_network(folder: Path) -> Dust3r:
    """The network of a training's newest checkpoint, with the averaged weights, in evaluation mode.

    Raises:
        UnusableTrainingError: The folder has no readable checkpoint.
    """
    state = read_newest_checkpoint(folder)
    if state is None:
        raise UnusableTrainingError("there is no checkpoint", way_out="Train first", path=folder)
    network = Dust3r(config_from_json(cast(str, state["config"])))
    network.load_state_dict(cast(dict[str, Tensor], state["average"]))
    return network.eval()


def _photo_source(settings: PretrainSettings, device: torch.device) -> RoomViewSource:
    if device.type != "cpu":
        return RenderedRooms(settings=settings.photos, device=device)
    return cache_rooms(
        settings.photos,
        settings.sampling.scene_count,
        settings.photo_folder or settings.folder / "photos",
        show_progress=settings.show_progress,
    )


@contextmanager
def _single_threaded_operations(device: torch.device) -> Iterator[None]:
    """On a CPU one thread per operation, since the shards of a step have their own."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Float32Attention(TorchFunctionMode):
    """Attention in float32 within autocast: on a CPU, backward included, four times faster than in bfloat16.

    Measured with 64 patches and 4 heads of 32 channels on a Zen 4 core with torch 2.15.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (tensor.float() for tensor in args)
        with torch.autocast("cpu", enabled=False):
            return func(query, key, value, **(kwargs or {})).to(args[0].dtype)


class _Trainer:
    """A network in training: weights, average, optimiser, and how far it is."""

    def __init__(self, settings: PretrainSettings, source: RoomViewSource, device: torch.device) -> None:
        self.settings, self.source, self.device = settings, source, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = Dust3r(settings.network)
        if settings.start_from is not None:
            given = load_network(settings.start_from)
            if given.config != settings.network:
                raise SettingsError(
                    f"the weights {settings.start_from} are of another network", way_out="Give its configuration"
                )
            self.network.load_state_dict(given.state_dict())
        self.network.to(device)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = _optimizer(self.network, settings)
        self.step = 0
        self.pairs = 0
        self.seconds = 0.0

    # --- state on disk --------------------------------------------------------------------------

    def averaged_state(self) -> dict[str, Tensor]:
        """The network's state with the averaged weights."""
        state = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        names = [name for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        state.update(zip(names, (tensor.clone() for tensor in self.average), strict=True))
        return state

    def averaged_network(self) -> Dust3r:
        """A copy of the network with the averaged weights, on the host, in evaluation mode."""
        network = Dust3r(self.settings.network)
        network.load_state_dict(self.averaged_state())
        return network.eval()

    def save(self) -> None:
        """Writes a checkpoint."""
        write_checkpoint(
            self.settings.folder,
            self.step,
            {
                "format": _CHECKPOINT_FORMAT,
                "step": self.step,
                "pairs": self.pairs,
                "seconds": self.seconds,
                "config": json_from_config(self.settings.network),
                "settings": json.dumps(asdict(self.settings), default=str),
                "network": self.network.state_dict(),
                "average": self.averaged_state(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> bool:
        """Takes over the folder's newest checkpoint; False if there is none."""
        state: dict[str, Any] | None = read_newest_checkpoint(self.settings.folder)
        if state is None:
            return False
        if state.get("format") != _CHECKPOINT_FORMAT or config_from_json(state["config"]) != self.settings.network:
            raise UnusableTrainingError(
                "the folder holds the training of another network",
                way_out="Choose another folder, or give the same network configuration",
                path=self.settings.folder,
            )
        self.network.load_state_dict(state["network"])
        names = [name for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        self.average = [state["average"][name].to(self.device) for name in names]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.pairs, self.seconds = state["step"], state["pairs"], state["seconds"]
        return True

    # --- the loop -------------------------------------------------------------------------------

    def train(self, log: TrainingLog, validation: dict[str, ValidationPairs]) -> dict[str, dict[str, Any]]:
        """Trains to the end of the settings; returns the last validation."""
        settings = self.settings
        metrics: dict[str, dict[str, Any]] = {}
        sums, summed_steps, last_saved = torch.zeros(5), 0, self.step
        with (
            ThreadPoolExecutor(settings.shards) as pool,
            ThreadPoolExecutor(1) as loader,
            progress_bar("pretraining", settings.steps, shown=settings.show_progress) as advance,
        ):
            advance(self.step)
            coming = loader.submit(settings.sampling.draw, self.source, self.step)
            while settings.progress(self.step, self.seconds) < 1.0:
                begun = time.perf_counter()
                groups = coming.result()
                coming = loader.submit(settings.sampling.draw, self.source, self.step + 1)
                rate = settings.learning_rate_at(self.step, self.seconds)
                sums += self._step(groups, rate, pool)
                summed_steps += 1
                self.step += 1
                self.pairs += settings.sampling.pairs_per_step
                self.seconds += min(time.perf_counter() - begun, _LONGEST_COUNTED_STEP_S)
                advance(1)
                if self.step % settings.log_every == 0:
                    names = ("loss", "confidence", "matching", "error_first", "error_second")
                    means = dict(zip(names, (sums / summed_steps).tolist(), strict=True))
                    log.append({"step": self.step, "pairs": self.pairs, "seconds": round(self.seconds, 2),
                                "learning_rate": rate, **means})  # fmt: skip
                    sums, summed_steps = torch.zeros(5), 0
                if self.step % settings.validate_every == 0:
                    metrics = self._validate(validation, log)
                if self.step % settings.checkpoint_every == 0:
                    self.save()
                    last_saved = self.step
            coming.cancel()
        if self.step % settings.validate_every != 0 or not metrics:
            metrics = self._validate(validation, log)
        if last_saved != self.step:
            self.save()
        return metrics

    def _step(self, groups: RoomViewGroups, learning_rate: float, pool: ThreadPoolExecutor) -> Tensor:
        """One update of weights and average; returns the values of the objective and its parts."""
        shards = self.settings.shards
        size = len(groups) // shards
        parts = [groups.select(slice(k * size, (k + 1) * size)) for k in range(shards)]
        weight = self.settings.matching_weight_at(self.step)
        results = list(pool.map(lambda part: self._gradients(part, weight), parts))
        for parameter, *gradients in zip(self.parameters, *(gradients for gradients, _ in results), strict=True):
            parameter.grad = sum(gradients[1:], gradients[0]) / shards
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.settings.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1.0 - decay)
        return torch.stack([values for _, values in results]).mean(dim=0).cpu()

    def _gradients(self, groups: RoomViewGroups, matching_weight: float) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients and values of one shard. Runs in a thread of its own."""
        settings, on_cpu = self.settings, self.device.type == "cpu"
        if on_cpu:
            torch.set_num_threads(1)
        groups = groups.to(self.device)
        photos, batches = photos_and_pairs(groups)
        mode = _Float32Attention() if on_cpu and settings.mixed_precision else nullcontext()
        with self._autocast(), mode:
            encodings = {size: self.network.encode(of_size.rgb) for size, of_size in photos.items()}
        pairs = sum(len(batch.first) for batch in batches)
        objective, values = torch.zeros((), device=self.device), torch.zeros(5, device=self.device)
        for batch in batches:
            with torch.no_grad():
                truth = pair_truth(
                    photos[batch.first_size].select(batch.first),
                    photos[batch.second_size].select(batch.second),
                    settings.network.patch_size,
                )
            with self._autocast(), mode:
                output = self.network.decode(
                    encodings[batch.first_size].select(batch.first), encodings[batch.second_size].select(batch.second)
                )
            loss = pretrain_loss(
                output,
                truth,
                confidence_alpha=settings.confidence_alpha,
                matching_weight=matching_weight,
                temperature=settings.matching_temperature,
            )
            share = len(batch.first) / pairs
            objective, values = objective + share * loss.total, values + share * loss.detached()
        return torch.autograd.grad(objective, self.parameters), values

    def _autocast(self) -> torch.autocast:
        # Torch keeps one cache of narrowed weights for all threads, and any thread that leaves autocast empties it:
        # whether a weight's gradients are summed before or after they are widened would be a matter of luck.
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.settings.mixed_precision,
            cache_enabled=self.settings.shards == 1,
        )

    def _validate(self, validation: dict[str, ValidationPairs], log: TrainingLog) -> dict[str, dict[str, Any]]:
        network = self.averaged_network().to(self.device)
        metrics = {name: validate(network, pairs) for name, pairs in validation.items()}
        log.append({"step": self.step, "pairs": self.pairs, "seconds": self.seconds, "validation": metrics})
        for name, values in metrics.items():
            _LOGGER.info("step %d, %d pairs, %s: %s", self.step, self.pairs, name, headline(values))
        draw_curves(log.path, self.settings.folder / _CURVES_FILE)
        return metrics


def _optimizer(network: Dust3r, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices and convolutions only."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
