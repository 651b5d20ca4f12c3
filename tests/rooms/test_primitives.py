"""Every solid against its naive twin."""

import numpy as np
import pytest
import torch
from reference import rooms_raycast

from lora3d_ns.rooms.primitives import BOX, CONE, CYLINDER, PRISM, SOLID_KINDS, SPHERE, intersect, unit_normals

NAMES = {BOX: "box", CYLINDER: "cylinder", SPHERE: "sphere", CONE: "cone", PRISM: "prism"}


def components(vectors: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, z = torch.from_numpy(vectors).T
    return x, y, z


def random_rays(count: int, seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Origins on a sphere of this radius; most rays pass near the unit solid, and a few run along an axis."""
    random = np.random.default_rng(seed)
    outward = random.normal(size=(count, 3))
    origins = distance * outward / np.linalg.norm(outward, axis=1, keepdims=True)
    targets = random.uniform(-1.1, 1.1, size=(count, 3))
    directions = (targets - origins) * random.uniform(0.1, 2.0, size=(count, 1))
    axis = np.arange(count) % 3
    along = np.arange(count) < 30
    directions[along] = 0.0
    directions[along, axis[along]] = -np.sign(origins[along, axis[along]])
    origins[along] = 0.4 * random.uniform(-1, 1, size=(30, 3))
    origins[along, axis[along]] = -distance * directions[along, axis[along]]
    return origins.astype(np.float32), directions.astype(np.float32)


@pytest.mark.parametrize("distance", [2.0, 60.0])
@pytest.mark.parametrize("kind", SOLID_KINDS, ids=NAMES.get)
def test_hits_and_normals_equal_the_naive_twin(kind: int, distance: float) -> None:
    origins, directions = random_rays(400, seed=kind, distance=distance)
    tapers = np.random.default_rng(1).uniform(0.05, 1.0, size=400).astype(np.float32)
    enter, leave = intersect(
        kind,
        components(origins),
        components(directions),
        torch.from_numpy(tapers),
    )
    hit_count = 0
    for ray in range(400):
        origin, direction = origins[ray].astype(np.float64), directions[ray].astype(np.float64)
        hits = rooms_raycast.unit_hits(kind, origin, direction, float(tapers[ray]))
        if not hits:
            # Rounding may turn a line that just misses into one that just touches.
            assert enter[ray] > leave[ray] - 0.02 * distance / np.linalg.norm(direction)
            continue
        (t, normal), (t_last, _) = min(hits, key=lambda hit: hit[0]), max(hits, key=lambda hit: hit[0])
        cosine = abs(normal @ direction) / np.linalg.norm(normal) / np.linalg.norm(direction)
        if cosine < 0.05 or t_last - t < 1e-3 * abs(t):
            continue
        hit_count += 1
        assert enter[ray].item() == pytest.approx(t, rel=1e-5), (ray, hits)
        assert leave[ray].item() == pytest.approx(t_last, rel=1e-4)
        point = (origin + t * direction).astype(np.float32)
        ours = (
            torch.stack(unit_normals(kind, components(point[None]), torch.tensor([tapers[ray]])))[:, 0].double().numpy()
        )
        assert ours @ normal / np.linalg.norm(ours) / np.linalg.norm(normal) > 0.999
    assert hit_count > 150


def test_unknown_solid_is_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="unknown solid"):
        intersect(17, (one, one, one), (one, one, one), one)
    with pytest.raises(ValueError, match="unknown solid"):
        unit_normals(17, (one, one, one), one)
