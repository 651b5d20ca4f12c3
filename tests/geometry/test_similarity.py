import torch
from hypothesis import given
from hypothesis import strategies as st

from lora3d_ns.geometry.similarity import weighted_scale, weighted_similarity
from lora3d_ns.types import Sim3


def random_similarities(count: int, generator: torch.Generator) -> Sim3:
    rotation = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    scale = torch.rand(count, dtype=torch.float64, generator=generator) + 0.2
    return Sim3(
        scale=scale, rotation=rotation, translation=torch.randn(count, 3, dtype=torch.float64, generator=generator)
    )


@given(seed=st.integers(0, 20))
def test_known_similarities_come_back(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true = random_similarities(4, generator)
    source = torch.randn(4, 30, 3, dtype=torch.float64, generator=generator)
    target = torch.stack([source[b] @ true.rotation[b].T * true.scale[b] + true.translation[b] for b in range(4)])
    found = weighted_similarity(source, target, torch.rand(4, 30, dtype=torch.float64, generator=generator) + 0.1)
    for name in ("scale", "rotation", "translation"):
        torch.testing.assert_close(getattr(found, name), getattr(true, name), rtol=1e-9, atol=1e-9)


def test_points_without_weight_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    (scale, rotation, translation) = (torch.tensor(2.0), torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    source = torch.randn(20, 3, generator=generator)
    target = scale * source + translation
    target[:5] += 100.0
    weights = torch.ones(20)
    weights[:5] = 0.0
    found = weighted_similarity(source, target, weights)
    torch.testing.assert_close(found.scale, scale)
    torch.testing.assert_close(found.rotation, rotation)
    torch.testing.assert_close(found.translation, translation)


def test_it_minimises_its_objective() -> None:
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    weights = torch.rand(50, dtype=torch.float64, generator=generator)
    best = weighted_similarity(source, target, weights)

    def objective(similarity: Sim3) -> float:
        return float((weights * (similarity.apply(source) - target).square().sum(dim=-1)).sum())

    at_best = objective(best)
    for _ in range(50):
        small = 1e-3 * torch.randn(7, dtype=torch.float64, generator=generator)
        skew = torch.tensor(
            [[0, -small[2], small[1]], [small[2], 0, -small[0]], [-small[1], small[0], 0]], dtype=torch.float64
        )
        nearby = Sim3(
            scale=best.scale * (1 + small[6]),
            rotation=torch.linalg.matrix_exp(skew) @ best.rotation,
            translation=best.translation + small[3:6],
        )
        assert objective(nearby) > at_best


def test_mirrored_points_give_a_rotation_all_the_same() -> None:
    source = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = weighted_similarity(source, source * torch.tensor([1.0, 1.0, -1.0]), torch.ones(30, dtype=torch.float64))
    assert torch.linalg.det(found.rotation) > 0.99


def test_scale_is_robust_against_a_quarter_of_outliers() -> None:
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(100, 3, generator=generator)
    target = 3.0 * source
    target[:25] = 50.0 * torch.randn(25, 3, generator=generator)
    torch.testing.assert_close(weighted_scale(source, target, torch.ones(100)), torch.tensor(3.0), rtol=0.02, atol=0.0)
