"""Every backbone through one set of tests: shapes, conditions, gradients, derivatives against finite differences."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndm.method.parts import from_config
from ndm.networks import Backbone, ConvNet, ImageTransformer, ResidualMLP, UNet


def vector_mlp(**options) -> ResidualMLP:
    return ResidualMLP(features=3, hidden=16, depth=2, embedding=8, **options)


def image_mlp(**options) -> ResidualMLP:
    return ResidualMLP(features=2 * 4 * 4, hidden=16, depth=2, embedding=8, **options)


def unet(**options) -> UNet:
    return UNet(channels=2, width=8, multipliers=(1, 2), groups=4, **options)


def attentive_unet(**options) -> UNet:
    return unet(attention=True, attention_heads=2, **options)


def vdm_unet(**options) -> UNet:
    return UNet(
        channels=2, width=8, multipliers=(1,), blocks=2, groups=4, attention="middle", fourier=(0, 1), **options
    )


def checkpointed_unet(**options) -> UNet:
    return unet(attention=True, checkpointing=True, **options)


def transformer(**options) -> ImageTransformer:
    return ImageTransformer(channels=2, patch=2, width=16, depth=2, attention_heads=2, embedding=16, **options)


def checkpointed_transformer(**options) -> ImageTransformer:
    return transformer(checkpointing=True, **options)


def conv_net(**options) -> ConvNet:
    return ConvNet(channels=2, width=8, embedding=8, **options)


def patched_conv_net(**options) -> ConvNet:
    return conv_net(patch=2, **options)


SHAPES: dict[Callable[..., Backbone], tuple[int, ...]] = {
    vector_mlp: (3,),
    image_mlp: (2, 4, 4),
    unet: (2, 8, 4),
    attentive_unet: (2, 8, 4),
    vdm_unet: (2, 4, 4),
    checkpointed_unet: (2, 8, 4),
    transformer: (2, 8, 4),
    checkpointed_transformer: (2, 8, 4),
    conv_net: (2, 6, 5),
    patched_conv_net: (2, 6, 4),
}
every_network = pytest.mark.parametrize("make", SHAPES)


def batch(make: Callable, size: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(size, *SHAPES[make], dtype=dtype), torch.rand(size, dtype=dtype)


@every_network
@pytest.mark.parametrize("heads", [1, 3])
def test_heads_are_stacked_along_the_first_dimension(make, heads: int) -> None:
    z, u = batch(make)
    first, *rest = SHAPES[make]
    assert make(heads=heads)(z, u).shape == (5, heads * first, *rest)
    assert make(heads=heads, level=False)(z).shape == (5, heads * first, *rest)


@every_network
def test_output_starts_at_zero_unless_told_otherwise(make) -> None:
    z, u = batch(make)
    assert (make()(z, u) == 0).all()
    assert make(zero_init=False)(z, u).std() > 0.01


@every_network
@pytest.mark.parametrize("options", [{}, {"level": False}, {"classes": 4}, {"level": False, "classes": 4}], ids=str)
def test_every_parameter_gets_a_gradient(make, options: dict) -> None:
    net = make(zero_init=False, **options)
    z, u = batch(make)
    labels = torch.tensor([0, 1, 2, 3, 0]) if "classes" in options else None
    net(z, u if net.level else None, labels).square().sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_network
def test_examples_do_not_see_each_other(make) -> None:
    net = make(zero_init=False, classes=4).double()
    z, u = batch(make, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    one_by_one = torch.cat([net(z[i, None], u[i, None], labels[i, None]) for i in range(5)])
    torch.testing.assert_close(net(z, u, labels), one_by_one)


@every_network
def test_output_depends_on_each_condition(make) -> None:
    net = make(zero_init=False, classes=4).double()
    z, u = batch(make, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    output = net(z, u, labels)
    assert output.dtype == torch.float64
    nobody = torch.full_like(labels, 4)  # the label of no class
    for other in (net(z + 0.1, u, labels), net(z, u + 0.1, labels), net(z, u, (labels + 1) % 4), net(z, u, nobody)):
        assert ((output - other).flatten(1).norm(dim=1) > 1e-3).all()


@every_network
def test_forward_mode_agrees_with_finite_differences(make) -> None:
    net = make(zero_init=False).double()
    point, direction = batch(make, dtype=torch.float64), batch(make, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = jvp(net, point, direction)
    assert derivative.norm() > 0.1
    torch.testing.assert_close(derivative, central_difference(net, point, direction), rtol=1e-5, atol=1e-6)


@every_network
def test_nested_forward_mode_agrees_with_finite_differences(make) -> None:
    """d/dz of dF/du, the order in which a likelihood differentiates the reverse process."""
    net = make(zero_init=False).double()
    (z, u), (dz, du) = batch(make, dtype=torch.float64), batch(make, dtype=torch.float64)

    def slope(z: Tensor) -> Tensor:
        return jvp(lambda u: net(z, u), (u,), (du,))[1]

    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = jvp(slope, (z,), (dz,))
        truth = central_difference(slope, (z,), (dz,))
    assert derivative.norm() > 0.01
    torch.testing.assert_close(derivative, truth, rtol=1e-5, atol=1e-6)


@every_network
def test_reverse_over_forward_mode_agrees_with_finite_differences(make) -> None:
    """The gradient of a loss made of dF/du: a training step of the bound."""
    net = make(zero_init=False).double()
    (z, u), (_, du) = batch(make, dtype=torch.float64), batch(make, dtype=torch.float64)
    weight = next(p for p in net.parameters() if p.ndim > 1)
    change = torch.randn_like(weight)

    def loss() -> Tensor:
        return jvp(lambda u: net(z, u), (u,), (du,))[1].square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(loss(), weight)
        with torch.no_grad():
            weight += 1e-5 * change
            above = loss()
            weight -= 2e-5 * change
            below = loss()
    torch.testing.assert_close((gradient * change).sum(), (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


@every_network
def test_half_precision_by_autocast_is_close(make) -> None:
    net = make(zero_init=False)
    z, u = batch(make)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(z, u).float()
    full = net(z, u)
    assert 0 < (half - full).norm() < 0.03 * full.norm()


@every_network
def test_derivatives_in_half_precision_by_autocast_are_close(make) -> None:
    """Reverse mode, forward mode, and reverse over forward mode: what a step of training takes."""
    net = make(zero_init=False)
    (z, u), (dz, du) = batch(make), batch(make)

    def derivatives() -> list[Tensor]:
        (gradient,) = torch.autograd.grad(net(z, u).float().square().sum(), parameter)
        with sdpa_kernel(SDPBackend.MATH):
            slope = jvp(net, (z, u), (dz, du))[1].float()
        return [gradient, slope, torch.autograd.grad(slope.square().sum(), parameter)[0]]

    parameter = max(net.parameters(), key=Tensor.numel)
    full = derivatives()
    with torch.autocast("cpu", torch.bfloat16):
        half = derivatives()
    for h, f in zip(half, full, strict=True):
        assert f.dtype == h.dtype == torch.float32
        assert 0 < (h - f).norm() < 0.1 * f.norm()


@every_network
def test_low_noise_levels_survive_autocast(make) -> None:
    """A change of z that bfloat16 rounds away, of an eighth of a pixel's level, is seen by the first layer."""
    net = make(zero_init=False)
    z, u = torch.full((64, *SHAPES[make]), 0.8984375), torch.rand(64)
    moved = z + 1e-3 * torch.rand_like(z)
    assert torch.equal(z.bfloat16(), moved.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(z, u), net(z, u))
        assert not torch.equal(net(z, u), net(moved, u))


@every_network
def test_slope_in_the_noise_level_is_of_moderate_size(make) -> None:
    """A positional embedding of 1000 u would fail this by a wide margin: its slope is hundreds of times the output."""
    net = make(zero_init=False)
    z, u = batch(make, size=64)
    with sdpa_kernel(SDPBackend.MATH):
        output, slope = jvp(lambda u: net(z, u), (u,), (torch.ones_like(u),))
    assert slope.norm() < 20 * output.norm()


@every_network
def test_dropout_acts_in_training_only(make) -> None:
    net = make(zero_init=False, dropout=0.5)
    z, u = batch(make)
    assert not torch.equal(net(z, u), net(z, u))
    net.eval()
    assert torch.equal(net(z, u), net(z, u))


@every_network
@pytest.mark.parametrize("options", [{}, {"level": False, "heads": 2}, {"classes": 4, "zero_init": False}], ids=str)
def test_configuration_and_state_rebuild_the_network(make, options: dict) -> None:
    net = make(**options).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    twin = from_config(net.config()).eval()
    twin.load_state_dict(net.state_dict())
    z, u = batch(make)
    inputs = (z, u if net.level else None, torch.tensor([0, 1, 2, 3, 0]) if net.classes else None)
    assert torch.equal(net(*inputs), twin(*inputs))
    assert torch.equal(net(*inputs), copy.deepcopy(net)(*inputs))


@every_network
def test_conditions_must_be_those_the_network_knows(make) -> None:
    z, u = batch(make)
    labels = torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="got labels but has no classes"):
        make()(z, u, labels)
    with pytest.raises(ValueError, match="built with classes=4: give it labels"):
        make(classes=4)(z, u)
    with pytest.raises(ValueError, match="takes the noise level"):
        make()(z)
    with pytest.raises(ValueError, match="built with level=False"):
        make(level=False)(z, u)


def test_importing_the_perceptron_does_not_import_diffusers() -> None:
    code = "import sys; from ndm.networks import ResidualMLP; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_refused_in_pythons_words() -> None:
    import ndm.networks

    with pytest.raises(AttributeError, match="no attribute 'ResNet'"):
        _ = ndm.networks.ResNet
    assert {"ResidualMLP", "UNet"} <= set(dir(ndm.networks))


def central_difference(
    f: Callable[..., Tensor], point: tuple[Tensor, ...], direction: tuple[Tensor, ...], step: float = 1e-5
) -> Tensor:
    """The derivative of f along a direction, without automatic differentiation."""
    with torch.no_grad():
        above = f(*(p + step * d for p, d in zip(point, direction, strict=True)))
        below = f(*(p - step * d for p, d in zip(point, direction, strict=True)))
    return (above - below) / (2 * step)
