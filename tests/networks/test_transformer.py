"""What only the transformer promises."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import nn

from ndm.networks import ImageTransformer
from ndm.networks.transformer import _Block, _positions


def small(**options) -> ImageTransformer:
    return ImageTransformer(channels=1, **{"patch": 2, "width": 16, "depth": 2, "attention_heads": 2, **options})


def test_positions_are_those_of_dit() -> None:
    truth = get_2d_sincos_pos_embed(16, 6, base_size=6).double()
    torch.testing.assert_close(
        _positions(6, 6, torch.empty(1, 16, 6, 6, dtype=torch.float64)), truth, rtol=0, atol=1e-6
    )
    tall = _positions(6, 3, torch.empty(1, 16, dtype=torch.float64)).reshape(6, 3, 16)
    torch.testing.assert_close(tall, truth.reshape(6, 6, 16)[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_go_back_to_where_they_came_from(patch: int) -> None:
    """Without blocks a token is changed only by itself: what is done to one pixel shows in its own patch."""
    net = small(patch=patch, depth=0, zero_init=False, level=False).double()
    z = torch.randn(1, 1, 8, 12, dtype=torch.float64)
    touched = z.clone()
    touched[0, 0, 5, 9] += 1
    rows, columns = torch.where((net(touched) - net(z))[0, 0].abs() > 1e-12)
    assert (rows.min().item(), rows.max().item()) == (5 // patch * patch, 5 // patch * patch + patch - 1)
    assert (columns.min().item(), columns.max().item()) == (9 // patch * patch, 9 // patch * patch + patch - 1)


def test_pixels_of_a_patch_are_laid_out_row_by_row_for_every_head() -> None:
    net = small(heads=2, depth=0)
    with torch.no_grad():
        net.output.bias.copy_(torch.arange(8.0))
    image = net(torch.randn(1, 1, 4, 4), torch.rand(1))[0]
    first = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    torch.testing.assert_close(image, torch.stack([first, first + 4]).repeat(1, 2, 2))


def test_blocks_start_as_the_identity() -> None:
    h, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    assert torch.equal(_Block(16, 8, 2, zero_init=True, dropout=0.0)(h, condition), h)
    assert torch.equal(_Block(16, 0, 2, zero_init=True, dropout=0.0)(h, None), h)
    assert not torch.equal(_Block(16, 8, 2, zero_init=False, dropout=0.0)(h, condition), h)


def test_a_block_is_ditss() -> None:
    """Against the formulas of adaLN-Zero, with PyTorch's own layers in the place of ours."""
    block = _Block(16, 8, 2, zero_init=False, dropout=0.0).double()
    h, condition = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).double()
    own = block.attention
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]))
        attention.in_proj_bias.copy_(torch.cat([own.to_q.bias, own.to_k.bias, own.to_v.bias]))
    attention.out_proj = own.to_out[0]
    linear = block.modulation.linear
    b1, g1, a1, b2, g2, a2 = linear(nn.functional.silu(condition))[:, None].chunk(6, dim=2)
    inner = nn.functional.layer_norm(h, (16,), eps=1e-6) * (1 + g1) + b1
    h1 = h + a1 * attention(inner, inner, inner)[0]
    inner = nn.functional.layer_norm(h1, (16,), eps=1e-6) * (1 + g2) + b2
    first, last = block.layers.net[0].proj, block.layers.net[2]
    truth = h1 + a2 * last(nn.functional.gelu(first(inner), approximate="tanh"))
    torch.testing.assert_close(block(h, condition), truth)


def test_no_part_of_it_is_pytorchs_layer_norm() -> None:
    assert not any(isinstance(m, nn.LayerNorm) for m in small(classes=3).modules())


def test_any_size_of_whole_patches_will_do() -> None:
    net = small(patch=4)
    for size in [(8, 8), (4, 12)]:
        assert net(torch.randn(2, 1, *size), torch.rand(2)).shape == (2, 1, *size)
    assert net.to(memory_format=torch.channels_last)(torch.randn(2, 1, 8, 4), torch.rand(2)).shape == (2, 1, 8, 4)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (2, 8, 8), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 1, H, W\) with H and W divisible by 2"):
        small()(torch.randn(3, *shape), torch.rand(3))


@pytest.mark.parametrize("options", [{"width": 18}, {"width": 20, "attention_heads": 3}], ids=str)
def test_widths_that_cannot_be_shared_out_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="width must be divisible by 4 and by attention_heads"):
        small(**options)


def test_checkpointing_changes_memory_only() -> None:
    plain, saving = small(zero_init=False, dropout=0.5), small(zero_init=False, dropout=0.5, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    z, u = torch.randn(3, 1, 8, 8), torch.rand(3)
    kept = {}
    for net in (plain, saving):
        sizes: list[int] = []

        def pack(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = net(z, u)
            kept[net] = sum(sizes)
        output.square().sum().backward()
    assert kept[saving] < 0.5 * kept[plain]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_reverse_mode_compiles_into_one_graph() -> None:
    net = small(depth=1, zero_init=False).double()
    z, u = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    truth = torch.autograd.grad(net(z, u).square().sum(), list(net.parameters()))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(z, u).square().sum(), list(net.parameters())), truth)
