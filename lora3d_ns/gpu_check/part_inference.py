"""All ordered pairs of 10 and of 40 photos through the full-size network, and through mini-dust3r's."""

import time
from collections.abc import Iterator

import torch

from lora3d_ns.benchmark_inference import run_inference_benchmark
from lora3d_ns.gpu_check.common import TINY_NETWORK, independent, number
from lora3d_ns.gpu_check.part_machine import matrix_rate_tflops
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row

TIME_GOAL = Goal(limit=0.6)
"""Seconds for 10 photos on one H200: a fifth of what its bf16 units could do."""

_PEER_BATCH_SIZE = 1
"""What DUSt3R's own demo uses."""
_LAST_END_S = 430.0
"""Seconds into the part at which nothing may be running any more."""
_PEER_OVERHEAD = 2.0
"""Beside the peer: its network is built, ours runs once more, and what both say is compared."""


def run(settings: PartSettings) -> Iterator[Row]:
    """Ours first; the peer's 40 photos only where its 10 photos say that there is time."""
    begun = time.perf_counter()
    few, many = (3, 4) if settings.tiny else (10, 40)
    peer_s: list[float] = []
    yield from independent(f"{few} photos", lambda: _ours(settings, few, repeats=3, goal=TIME_GOAL))
    yield from independent(f"{many} photos", lambda: _ours(settings, many, repeats=2, goal=None))
    if not settings.peer:
        return
    yield from independent(f"{few} photos, mini-dust3r", lambda: _against_peer(settings, few, 2, peer_s))
    if not peer_s:
        return
    pairs_ratio = many * (many - 1) / (few * (few - 1))
    expected_s = peer_s[0] * pairs_ratio
    name = f"{many} photos, all pairs, with mini-dust3r beside"
    if time.perf_counter() - begun + _PEER_OVERHEAD * expected_s > _LAST_END_S:
        yield Row(
            name=name, peer=expected_s, note=f"the peer's time is that of {few} photos times {pairs_ratio:.1f}: not run"
        )
        return
    yield from independent(name, lambda: _against_peer(settings, many, 1, peer_s))


def _record(settings: PartSettings, photos: int, *, repeats: int, peer: bool) -> dict[str, object]:
    return run_inference_benchmark(
        photos=photos,
        size=(64, 48) if settings.tiny else (512, 384),
        head="dpt",
        precision="auto",
        device=settings.device,
        repeats=repeats,
        peer=peer,
        peer_batch_size=_PEER_BATCH_SIZE,
        seed=settings.seed,
        json_path=None,
        config=TINY_NETWORK if settings.tiny else None,
    )


def _ours(settings: PartSettings, photos: int, *, repeats: int, goal: Goal | None) -> Iterator[Row]:
    record = _record(settings, photos, repeats=repeats, peer=False)
    seconds = record["ours_all_s"]
    assert isinstance(seconds, list)
    each = ", ".join(f"{one:.3g}" for one in seconds)
    label = f"{photos} photos, all {record['pairs']} pairs"
    yield Row(name=label, value=number(record, "ours_s"), unit="s", goal=goal, note=f"best of {each}; to host memory")
    yield Row(
        name=f"{photos} photos, rate",
        value=number(record, "ours_tflop_per_s"),
        unit="TFLOP/s",
        note=f"{number(record, 'ours_tflop'):.4g} TFLOP",
    )
    peak_mib, weights_mib = number(record, "peak_mib"), number(record, "weights_mib")
    yield Row(
        name=f"{photos} photos, peak memory beyond the weights",
        value=peak_mib / 1024,
        unit="GiB",
        note=f"weights {weights_mib / 1024:.2f} GiB; counted by torch's allocator",
    )
    device = torch.device(settings.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = matrix_rate_tflops(device, dtype, 128 if settings.tiny else 8192)
    yield Row(
        name=f"{photos} photos, share of the floor",
        value=number(record, "ours_tflop") / rate / number(record, "ours_s"),
        note=f"1 would be all of it as matrix products at {rate:.4g} TFLOP/s, measured now",
    )


def _against_peer(settings: PartSettings, photos: int, repeats: int, peer_s: list[float]) -> Iterator[Row]:
    """Both in one process, one after the other; the peer's seconds are left in `peer_s`."""
    record = _record(settings, photos, repeats=repeats, peer=True)
    peer_s[:] = [number(record, "peer_s")]
    yield Row(
        name=f"{photos} photos, all pairs, with mini-dust3r beside",
        value=number(record, "ours_s"),
        unit="s",
        peer=number(record, "peer_s"),
        note=f"{record['peer']}, pairs at once: {_PEER_BATCH_SIZE}, in float32 with TF32, as it comes",
    )
    yield Row(name=f"{photos} photos, mini-dust3r's time over ours", value=number(record, "ratio"), unit="x")
    yield Row(
        name=f"{photos} photos, peak memory, with mini-dust3r beside",
        value=number(record, "peak_mib") / 1024,
        unit="GiB",
        peer=number(record, "peer_peak_mib") / 1024,
        note="beyond the weights",
    )
    yield Row(
        name=f"{photos} photos, largest difference from mini-dust3r",
        value=number(record, "max_relative_difference"),
        unit="of the largest",
        note="ours in its default precision, so rounding is in it",
    )
