"""Fine-tuning on 10 photos with the full-size network: steps, a whole training, memory; and peft on mini-dust3r."""

from collections.abc import Iterator

from lora3d_ns.benchmark_finetune import run_finetune_benchmark
from lora3d_ns.gpu_check.common import TINY_NETWORK, independent, number
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row

TIME_GOAL = Goal(limit=20.0)
"""Seconds for ten epochs of 10 photos on one H200."""
PAPER_MEMORY_GOAL = Goal(limit=20.0)
"""GB of the paper's recipe, which it gives for an RTX 3090."""
LOW_MEMORY_GOAL = Goal(limit=12.0)
"""GB with recomputed activations."""

_STEPS = 5
_MEMORY_NOTE = "weights included; counted by torch's allocator, 1 GB = 10^9 bytes"


def run(settings: PartSettings) -> Iterator[Row]:
    """Steps of our default and of the paper's recipe, a whole training, steps in low memory, the peer at the end."""
    yield from independent("default", lambda: _default(settings))
    yield from independent("default, a whole training", lambda: _whole_training(settings))
    yield from independent("low memory", lambda: _low_memory(settings))
    if settings.peer:
        yield from independent("default, with mini-dust3r in peft beside", lambda: _against_peer(settings))


def _record(
    settings: PartSettings, *, peer: bool = False, low_memory: bool = False, complete: bool = False
) -> dict[str, object]:
    return run_finetune_benchmark(
        photos=3 if settings.tiny else 10,
        size=(64, 48) if settings.tiny else (512, 384),
        steps=1 if settings.tiny else _STEPS,
        device=settings.device,
        peer=peer,
        low_memory=low_memory,
        complete=complete,
        seed=settings.seed,
        config=TINY_NETWORK if settings.tiny else None,
    )


def _gigabytes(record: dict[str, object], key: str) -> float:
    return (number(record, key) + number(record, "weights_mib")) * 2**20 / 1e9


def _default(settings: PartSettings) -> Iterator[Row]:
    record = _record(settings)
    ordered = number(record, "pairs_per_step")
    yield Row(
        name="default, one step",
        value=number(record, "ours_s") * ordered / 2,
        unit="s",
        note=f"{ordered:.0f} ordered pairs, {number(record, 'ours_s'):.3g} s for both orders of a pair; a whole "
        f"training by it: {number(record, 'training_s'):.3g} s",
    )
    yield Row(name="default, peak memory of steps", value=_gigabytes(record, "peak_mib"), unit="GB", note=_MEMORY_NOTE)
    yield Row(
        name="paper's recipe, one step",
        value=number(record, "paper_recipe_s"),
        unit="s",
        note=f"2 ordered pairs; a whole training by it: "
        f"{number(record, 'paper_recipe_s') * number(record, 'pair_steps_of_training'):.3g} s",
    )
    yield Row(
        name="paper's recipe, peak memory",
        value=_gigabytes(record, "paper_peak_mib"),
        unit="GB",
        goal=PAPER_MEMORY_GOAL,
        note=_MEMORY_NOTE,
    )
    yield Row(
        name="adapter",
        value=number(record, "adapter_bytes") / 1e6,
        unit="MB",
        note=f"{number(record, 'parameters'):.0f} parameters",
    )


def _whole_training(settings: PartSettings) -> Iterator[Row]:
    """By itself: random weights may diverge in it, which takes no step's figures along."""
    record = _record(settings, complete=True)
    yield Row(
        name=f"default, {number(record, 'photos'):.0f} photos, a whole training",
        value=number(record, "complete_s"),
        unit="s",
        goal=TIME_GOAL,
        note=f"ten epochs of all pairs, {record['complete_steps']} steps",
    )
    yield Row(
        name="default, peak memory of a whole training",
        value=_gigabytes(record, "complete_peak_mib"),
        unit="GB",
        note=_MEMORY_NOTE,
    )


def _low_memory(settings: PartSettings) -> Iterator[Row]:
    record = _record(settings, low_memory=True)
    ordered = number(record, "pairs_per_step")
    yield Row(
        name="low memory, peak memory",
        value=_gigabytes(record, "peak_mib"),
        unit="GB",
        goal=LOW_MEMORY_GOAL,
        note=f"activations computed again, {ordered:.0f} ordered pairs a step; {_MEMORY_NOTE}",
    )
    yield Row(
        name="low memory, one step",
        value=number(record, "ours_s") * ordered / 2,
        unit="s",
        note=f"a whole training by it: {number(record, 'training_s'):.3g} s",
    )


def _against_peer(settings: PartSettings) -> Iterator[Row]:
    record = _record(settings, peer=True)
    yield Row(
        name="both orders of a pair, with mini-dust3r in peft beside",
        value=number(record, "ours_s"),
        unit="s",
        peer=number(record, "peer_s"),
        note=f"{record['peer']}; each program's fastest step, over its pairs",
    )
    yield Row(name="mini-dust3r's time over ours", value=number(record, "ratio"), unit="x")
    yield Row(name="mini-dust3r's time over ours by the paper's recipe", value=number(record, "paper_ratio"), unit="x")
    yield Row(
        name="peak memory of steps, with mini-dust3r beside",
        value=_gigabytes(record, "paper_peak_mib"),
        unit="GB",
        peer=_gigabytes(record, "peer_peak_mib"),
        note=f"both by the paper's recipe; {_MEMORY_NOTE}",
    )
    yield Row(
        name="first loss, difference from mini-dust3r",
        value=number(record, "loss_difference"),
        unit="of it",
        note="in the precision of both, so rounding is in it",
    )
