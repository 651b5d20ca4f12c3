"""10, 40 and 100 views of a simulated room, aligned by our program and by mini-dust3r's optimiser."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_alignment import EQ6_NOISE, AlignmentProblem, run_alignment_benchmark
from lora3d_ns.benchmark_record import PeakMemory
from lora3d_ns.gpu_check.common import independent, number
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row
from lora3d_ns.gpu_check.simulation import simulated_predictions
from lora3d_ns.pair_graph import CompleteGraph, PairGraphSettings, WindowGraph, build_pair_graph
from lora3d_ns.rooms.simulated import photograph_rooms

TIME_GOAL = Goal(limit=2.0)
"""Seconds for 10 photos on one H200."""

_FULL_SIZE, _HALF_SIZE, _TINY_SIZE = (512, 384), (256, 192), (32, 24)
_MOST_MAKING_S = 100.0
"""Seconds that the predictions of one case may take to be simulated; beyond, the maps are a quarter as large."""
_LAST_END_S = 430.0
"""Seconds into the part at which nothing may be running any more."""
_PEER_OVERHEAD, _PEER_OVERHEAD_S = 1.5, 40.0
"""Beside the peer: ours once more, and both objectives."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """How many views, and which pairs of them."""

    views: int
    graph: PairGraphSettings
    graph_name: str

    @property
    def pairs(self) -> int:
        return len(build_pair_graph(self.graph, self.views))


_CASES = (
    _Case(views=10, graph=CompleteGraph(), graph_name="complete"),
    _Case(views=40, graph=CompleteGraph(), graph_name="complete"),
    _Case(views=100, graph=WindowGraph(size=5), graph_name="each with the next 5"),
)
_TINY_CASES = (
    _Case(views=3, graph=CompleteGraph(), graph_name="complete"),
    _Case(views=4, graph=WindowGraph(size=2), graph_name="each with the next 2"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Made:
    """A case with its predictions, and what making them cost for each of them."""

    case: _Case
    name: str
    problem: AlignmentProblem
    seconds_per_pair: float


def run(settings: PartSettings) -> Iterator[Row]:
    """Ours of all cases first, then the peer's from the fewest pairs on, while there is time."""
    begun = time.perf_counter()
    made: list[_Made] = []
    for case in _TINY_CASES if settings.tiny else _CASES:
        goal = None if made else TIME_GOAL
        yield from independent(f"{case.views} views", lambda c=case, g=goal: _ours(settings, c, g, made))
    if not settings.peer:
        return
    peer_s_per_pair = 0.0
    for each in sorted(made, key=lambda one: one.case.pairs):
        name = f"{each.name}, with mini-dust3r beside"
        expected_s = peer_s_per_pair * each.case.pairs
        overhead_s = 0.0 if settings.tiny else _PEER_OVERHEAD_S
        if time.perf_counter() - begun + _PEER_OVERHEAD * expected_s + overhead_s > _LAST_END_S:
            note = f"would take mini-dust3r {expected_s:.0f} s if its time grew with the pairs: not run"
            yield Row(name=name, peer=expected_s, note=note)
            continue
        found: list[float] = []
        yield from independent(name, lambda e=each, n=name, f=found: _against_peer(settings, e, n, f))
        if not found:
            # Not there, or it failed: it would again.
            return
        peer_s_per_pair = found[0] / each.case.pairs


def size_of(pairs: int, seconds_per_pair: float) -> tuple[int, int]:
    """(width, height) at which so many pairs can be simulated in time, where one of full size takes these seconds."""
    return _FULL_SIZE if seconds_per_pair * pairs < _MOST_MAKING_S else _HALF_SIZE


def _make(settings: PartSettings, case: _Case, seconds_per_pair: float) -> _Made:
    """The case's photos and predictions, simulated."""
    width, height = _TINY_SIZE if settings.tiny else size_of(case.pairs, seconds_per_pair)
    photos = photograph_rooms(case.views, shapes=[(height, width)], seed=settings.seed)
    graph = build_pair_graph(case.graph, case.views)
    begun = time.perf_counter()
    predictions = simulated_predictions(photos, graph, EQ6_NOISE, seed=settings.seed)
    seconds = time.perf_counter() - begun
    name = f"{case.views} views, {width} x {height}, {case.graph_name} ({len(graph)} pairs)"
    return _Made(case=case, name=name, problem=(photos, predictions), seconds_per_pair=seconds / len(graph))


def _ours(settings: PartSettings, case: _Case, goal: Goal | None, made: list[_Made]) -> Iterator[Row]:
    """Eq. 6 with all pairs, as the peer has it; the case is added to `made`."""
    this = _make(settings, case, made[0].seconds_per_pair if made else 0.0)
    made.append(this)
    making = f"simulated in {this.seconds_per_pair * case.pairs:.0f} s"
    record = run_alignment_benchmark(problem=this.problem, device=settings.device, seed=settings.seed, peer=False)
    if len(made) == 1:
        # What CUDA loads on first use is in it.
        yield Row(name=f"{this.name}, first in the process", value=number(record, "ours_s"), unit="s", note=making)
        record = run_alignment_benchmark(problem=this.problem, device=settings.device, seed=settings.seed, peer=False)
    yield Row(name=this.name, value=number(record, "ours_s"), unit="s", goal=goal, note=f"Eq. 6 as it is; {making}")
    yield Row(
        name=f"{this.name}, peak memory",
        value=number(record, "ours_peak_mib") / 1024,
        unit="GiB",
        note=_accuracy(record, "ours"),
    )
    name = f"{this.name}, our own objective"
    yield from independent(name, lambda: [_robust(settings, this, name, goal)])


def _robust(settings: PartSettings, made: _Made, name: str, goal: Goal | None) -> Row:
    """As a reconstruction aligns, but for matches, which have a time of their own."""
    photos, predictions = made.problem
    device = torch.device(settings.device)
    with PeakMemory(device) as watched:
        align(photos.views, predictions, AlignmentSettings(matches="off", show_progress=False), device=device)
    return Row(name=name, value=watched.seconds, unit="s", goal=goal, note="Eq. 7, without matches")


def _against_peer(settings: PartSettings, made: _Made, name: str, found: list[float]) -> Iterator[Row]:
    """Both on the same predictions; the peer's seconds are added to `found`."""
    record = run_alignment_benchmark(
        problem=made.problem,
        device=settings.device,
        seed=settings.seed,
        iterations=20 if settings.tiny else 300,
    )
    found.append(number(record, "peer_s"))
    yield Row(
        name=name,
        value=number(record, "ours_s"),
        unit="s",
        peer=number(record, "peer_s"),
        note=f"{record['peer']}, {record['peer_iterations']} iterations; ours {_accuracy(record, 'ours')}; its "
        f"{_accuracy(record, 'peer')}",
    )
    yield Row(name=f"{made.name}, mini-dust3r's time over ours", value=number(record, "ratio"), unit="x")
    yield Row(
        name=f"{made.name}, objective of Eq. 6",
        value=number(record, "ours_objective"),
        peer=number(record, "peer_objective"),
        note=f"evaluated alike; the peer began at {number(record, 'start_objective'):.4g}; lower is better",
    )
    yield Row(
        name=f"{made.name}, peak memory, with mini-dust3r beside",
        value=number(record, "ours_peak_mib") / 1024,
        unit="GiB",
        peer=number(record, "peer_peak_mib") / 1024,
    )


def _accuracy(record: dict[str, object], name: str) -> str:
    ate = record[f"{name}_ate"]
    at = "" if not isinstance(ate, float) else f"cameras off by {100 * ate:.2g} cm, "
    return f"{at}focal lengths by {number(record, f'{name}_afe_percent'):.2g} %"
