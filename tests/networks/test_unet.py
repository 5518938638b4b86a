"""What only the U-Net promises."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndm.networks import UNet


def small(**options) -> UNet:
    return UNet(channels=1, width=8, multipliers=(1, 2), groups=4, zero_init=False, **options).double()


def point() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, dtype=torch.float64)


@pytest.mark.parametrize("attention", [False, True, "middle"])
def test_channels_last_changes_nothing_but_the_layout(attention: bool) -> None:
    net = small(attention=attention)
    (z, u), (dz, du) = point(), point()
    with sdpa_kernel(SDPBackend.MATH):
        output, derivative = jvp(net, (z, u), (dz, du))
        net = net.to(memory_format=torch.channels_last)
        moved = tuple(x.to(memory_format=torch.channels_last) for x in (z, dz))
        output_last, derivative_last = jvp(net, (moved[0], u), (moved[1], du))
        primal = net(moved[0], u)
    torch.testing.assert_close(output_last, output)
    torch.testing.assert_close(derivative_last, derivative)
    torch.testing.assert_close(primal, output)
    torch.testing.assert_close(primal.norm(), output.norm())


def test_inputs_of_norms_are_copied_in_forward_mode_only(monkeypatch) -> None:
    norm = next(m for m in small().modules() if isinstance(m, nn.GroupNorm))
    plain, seen = nn.functional.group_norm, []
    monkeypatch.setattr(nn.functional, "group_norm", lambda x, *rest: seen.append(x is h) or plain(x, *rest))
    h = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    norm(h)
    jvp(norm, (h,), (h,))
    norm(h)
    assert seen == [True, False, True]


def test_every_norm_is_one_that_can_be_differentiated() -> None:
    net = small(attention=True)
    assert {type(m).__name__ for m in net.modules() if "Norm" in type(m).__name__} == {"_GroupNorm"}


def test_norms_are_computed_in_single_precision_under_autocast() -> None:
    net = UNet(channels=1, width=8, attention=True)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(1, 1, 8, 8), torch.rand(1))
    assert set(seen) == {torch.float32}


# One attention for each block on the way down, one for the middle, and one for each of the one more on the way up.
@pytest.mark.parametrize(
    ("attention", "sizes"),
    [
        (False, []),
        ("middle", [4]),
        (True, [4, 4, 4, 4]),
        ([2], [4, 4, 4, 4]),
        ([1], [8, 4, 8, 8]),
        ((0, 1), [16, 8, 4, 8, 8, 16, 16]),
    ],
    ids=str,
)
def test_attention_sits_where_it_is_wanted(attention, sizes: list[int]) -> None:
    net = UNet(channels=1, width=8, multipliers=(1, 1, 1), attention=attention)
    seen: list[int] = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    net(torch.randn(1, 1, 16, 16), torch.rand(1))
    assert seen == sizes


@pytest.mark.parametrize("attention", [[], [3], [-1], "everywhere"], ids=str)
def test_attention_nowhere_is_refused(attention) -> None:
    with pytest.raises(ValueError, match="list of resolutions from 0 to 1"):
        UNet(channels=1, attention=attention)


def test_attention_has_as_many_heads_as_wanted() -> None:
    """Against the formula, written out for one example's tokens."""
    net = UNet(channels=1, width=8, multipliers=(1, 2), attention="middle", attention_heads=4)
    (layer,) = (m for m in net.modules() if isinstance(m, Attention))
    tokens = torch.randn(1, 16, 3, 2)
    normed = layer.group_norm(tokens).flatten(2)[0].T
    outputs = []
    for q, k, v in zip(*(f(normed).chunk(4, dim=1) for f in (layer.to_q, layer.to_k, layer.to_v)), strict=True):
        outputs.append(torch.softmax(q @ k.T / 2, dim=1) @ v)
    truth = layer.to_out[0](torch.cat(outputs, dim=1)).T.reshape(1, 16, 3, 2) + tokens
    torch.testing.assert_close(layer(tokens), truth)
    with pytest.raises(ValueError, match=r"attention_heads=3 must divide the channels wherever .* \(8, 16\)"):
        UNet(channels=1, width=8, attention=True, attention_heads=3)
    UNet(channels=1, width=8, multipliers=(1, 3), attention="middle", attention_heads=3)


def test_fourier_features_are_those_of_vdm() -> None:
    """At 2^7 neighbouring levels are half a period apart, so the sine changes its sign; at 2^8 they look alike."""
    levels = (2 * torch.arange(256) + 1) / 256 - 1
    z = levels.reshape(1, 2, 16, 8)
    net = UNet(channels=2, width=8, fourier=(7, 8), groups=4)
    features: list[torch.Tensor] = []
    record = net.unet.conv_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_conv_forward", lambda x, weight, bias: features.append(x) or x[:, :8])
        record(z)
    (given,) = features
    assert given.shape == (1, 2 * 5, 16, 8)
    half, whole = torch.sin(128 * torch.pi * z), torch.sin(256 * torch.pi * z)
    torch.testing.assert_close(given[:, :2], z)
    torch.testing.assert_close(given[:, 2:6], torch.cat([half, whole], dim=1))
    alternating = given[0, 2:4].flatten()
    torch.testing.assert_close(alternating[1:], -alternating[:-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(given[:, 6:8].abs(), torch.zeros(1, 2, 16, 8), rtol=0, atol=1e-3)
    torch.testing.assert_close(given[:, 8:], -torch.ones(1, 2, 16, 8), rtol=0, atol=1e-3)


def test_vdms_unet_has_the_paths_of_the_paper() -> None:
    """One resolution, n blocks down and n + 1 up, each fed a skip, and one attention between two blocks."""
    net = UNet(3, width=32, multipliers=(1,), blocks=4, attention="middle", fourier=(7, 8), groups=32)
    down, up, middle = net.unet.down_blocks, net.unet.up_blocks, net.unet.mid_block
    assert [len(b.resnets) for b in down] == [4]
    assert [len(b.resnets) for b in up] == [5]
    assert (len(middle.resnets), len(middle.attentions)) == (2, 1)
    assert {r.conv1.in_channels for r in up[0].resnets} == {64}
    assert not any("sampler" in name for name, _ in net.named_modules() if name.endswith("0"))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_memory_only(dropout: float) -> None:
    plain = UNet(channels=1, width=8, attention=True, zero_init=False, dropout=dropout)
    saving = UNet(channels=1, width=8, attention=True, zero_init=False, dropout=dropout, checkpointing=True)
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
    torch.manual_seed(0)
    torch.testing.assert_close(plain(z, u), output, rtol=0, atol=0)
    assert kept[saving] < 0.7 * kept[plain]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_the_size_of_mnist_halves_twice() -> None:
    net = UNet(channels=1, width=8, multipliers=(1, 1, 2), attention=[2])
    assert net(torch.randn(1, 1, 28, 28), torch.rand(1)).shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match="H and W divisible by 8"):
        UNet(channels=1, width=8, multipliers=(1, 1, 1, 1))(torch.randn(1, 1, 28, 28), torch.rand(1))


@pytest.mark.parametrize("derivative", ["reverse", "reverse over forward"])
def test_derivatives_compile_into_one_graph(derivative: str) -> None:
    net = UNet(1, width=4, multipliers=(1,), groups=2, attention="middle", fourier=(1,), zero_init=False).double()
    (z, u), (dz, du) = point(), point()

    def f() -> torch.Tensor:
        return net(z, u) if derivative == "reverse" else jvp(net, (z, u), (dz, du))[1]

    parameters = [p for name, p in net.named_parameters() if name != "unet.conv_out.bias"]  # in no derivative
    with sdpa_kernel(SDPBackend.MATH):
        truth = torch.autograd.grad(f().square().sum(), parameters)
        compiled = torch.compile(f, fullgraph=True, backend="eager")
        gradients = torch.autograd.grad(compiled().square().sum(), parameters)
    torch.testing.assert_close(gradients, truth)


def test_images_of_any_divisible_size_will_do() -> None:
    net = UNet(channels=3, width=8, multipliers=(1, 1, 2), blocks=2)
    for size in [(8, 8), (4, 12)]:
        assert net(torch.randn(2, 3, *size), torch.rand(2)).shape == (2, 3, *size)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (2, 8, 8), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 1, H, W\) with H and W divisible by 2"):
        small()(torch.randn(3, *shape), torch.rand(3))


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"groups=8 must divide .* \(12, 24\)"):
        UNet(channels=1, width=12)
