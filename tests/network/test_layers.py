import pytest
import torch
from reference.attention import attend_naively
from reference.rotary import rotate_naively

from lora3d_ns.network.layers import CrossAttention, DecoderBlock, RotaryGrid, SelfAttention


def _grid(rows: int, columns: int, head_width: int = 8, base: float = 100.0) -> RotaryGrid:
    return RotaryGrid(rows, columns, head_width=head_width, base=base, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 2)])
def test_rotation_equals_complex_numbers(rows: int, columns: int) -> None:
    tokens = torch.randn(2, rows * columns, 3, 8, dtype=torch.float64)
    expected = rotate_naively(tokens, rows, columns, base=100.0)
    # Frequencies are float32 as in the official network: 1e-6 of an angle of a few radians.
    torch.testing.assert_close(_grid(rows, columns).rotate(tokens), expected, rtol=0, atol=1e-6)


def test_rotation_keeps_lengths_and_sees_only_differences_of_position() -> None:
    grid = _grid(4, 5)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    everywhere = lambda token: grid.rotate(token.expand(1, 20, 1, 8))[0, :, 0].reshape(4, 5, 8)  # noqa: E731
    queries, keys = everywhere(query), everywhere(key)
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(4, 5))
    here = (queries[1, 1] * keys[2, 3]).sum()
    shifted = (queries[2, 2] * keys[3, 4]).sum()
    elsewhere = (queries[1, 1] * keys[3, 3]).sum()
    torch.testing.assert_close(here, shifted, rtol=0, atol=1e-6)
    assert abs(here - elsewhere) > 1e-3


def test_self_attention_equals_the_naive_one_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(width=16, heads=2).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)

    def naive(x: torch.Tensor) -> torch.Tensor:
        query, key, value = attention.qkv(x).unflatten(-1, (3, 2, 8)).unbind(2)
        query, key = (rotate_naively(tokens, 2, 3, 100.0) for tokens in (query, key))
        return attention.proj(attend_naively(query, key, value))

    fast = attention(x, _grid(2, 3))
    torch.testing.assert_close(fast, naive(x), rtol=0, atol=1e-6)
    direction = torch.randn_like(fast)
    (fast_gradient,) = torch.autograd.grad((fast * direction).sum(), x)
    (naive_gradient,) = torch.autograd.grad((naive(x) * direction).sum(), x)
    torch.testing.assert_close(fast_gradient, naive_gradient, rtol=0, atol=1e-5)


def test_cross_attention_equals_the_naive_one_between_different_grids() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(width=16, heads=2).double()
    x, memory = torch.randn(1, 6, 16, dtype=torch.float64), torch.randn(1, 4, 16, dtype=torch.float64)
    query = rotate_naively(attention.projq(x).unflatten(-1, (2, 8)), 2, 3, 100.0)
    key = rotate_naively(attention.projk(memory).unflatten(-1, (2, 8)), 4, 1, 100.0)
    expected = attention.proj(attend_naively(query, key, attention.projv(memory).unflatten(-1, (2, 8))))
    torch.testing.assert_close(attention(x, memory, _grid(2, 3), _grid(4, 1)), expected, rtol=0, atol=1e-6)


def test_decoder_block_passes_gradcheck() -> None:
    torch.manual_seed(0)
    block = DecoderBlock(width=8, heads=1, mlp_ratio=2.0).double()
    x = torch.randn(1, 2, 8, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return block.look_at_other(block.look_at_self(x, _grid(1, 2)), other, _grid(1, 2), _grid(3, 1))

    assert torch.autograd.gradcheck(run, (x, other))
