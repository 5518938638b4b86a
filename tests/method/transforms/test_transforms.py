"""One set of tests for the whole family of transformations."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.parts import Part, from_config
from ndm.method.schedules import NoiseLevel
from ndm.method.steps import ContinuousTime
from ndm.method.transforms.bases import BASES
from ndm.method.transforms.gates import GATES
from ndm.networks import ResidualMLP

VECTOR, IMAGE = (3,), (2, 4, 4)
B, P = 5, 3


class Rise(Part):
    """a(gamma) = 1 + weight sigmoid(gamma), closing where the data are."""

    def __init__(self, weight: float = 0.8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, gamma: Tensor) -> Tensor:
        return 1 + self.weight * torch.sigmoid(gamma)


def net(shape: tuple[int, ...], **options) -> ResidualMLP:
    return ResidualMLP(math.prod(shape), hidden=12, depth=1, embedding=8, zero_init=False, **options)


def neural(gate: str):
    return lambda shape: ndm.Neural(net(shape), gate=gate)


def separable(basis: str, gate: str):
    return lambda shape: ndm.Separable(net(shape, heads=4, level=False), terms=4, basis=basis, gate=gate)


FAMILY = {
    "identity": (lambda shape: ndm.Identity(), IMAGE),
    "scale": (lambda shape: ndm.Scale(Rise()), VECTOR),
    "blur": (lambda shape: ndm.Blur(1.5), IMAGE),
    "neural, image": (neural("sigma2"), IMAGE),
    "separable, image": (separable("cosine", "sigma2"), IMAGE),
    **{f"neural, {gate}": (neural(gate), VECTOR) for gate in GATES},
    **{f"separable, {basis}, {gate}": (separable(basis, gate), VECTOR) for basis in BASES for gate in GATES},
}
every_transform = pytest.mark.parametrize(("make", "shape"), FAMILY.values(), ids=FAMILY)


learned = pytest.mark.parametrize(
    ("make", "shape"),
    [v for v in FAMILY.values() if list(v[0](v[1]).parameters())],
    ids=[k for k, v in FAMILY.items() if list(v[0](v[1]).parameters())],
)


def examples(shape: tuple[int, ...], dtype=torch.float64, batch: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *shape, dtype=dtype), torch.rand(P, batch, dtype=dtype) * 18 - 13.3


@every_transform
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_precision(make, shape, dtype) -> None:
    transform, (x, gamma) = make(shape).to(dtype), examples(shape, dtype)
    curve = transform(x)
    for points, expected in ((gamma[0], (B, *shape)), (gamma, (P, B, *shape)), (gamma[:0], (0, B, *shape))):
        if len(points) == 0 and isinstance(transform, ndm.Neural):
            continue  # nothing asks a curve for no points
        for out in (curve(points), *curve.with_derivative(points), *curve.displacement_with_derivative(points)):
            assert out.shape == expected
            assert out.dtype == dtype


@every_transform
def test_points_asked_together_equal_points_asked_apart(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    together = transform(x).with_derivative(gamma)
    for p in range(P):
        for b in range(B):
            f, df = transform(x[b : b + 1]).with_derivative(gamma[p, b : b + 1])
            torch.testing.assert_close(together[0][p, b], f[0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(together[1][p, b], df[0], rtol=1e-10, atol=1e-12)


@every_transform
def test_a_look_equals_what_is_asked_one_by_one(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    curve = transform(x)
    displacement, derivative, elsewhere = curve.evaluate(gamma[0], gamma[1:])
    expected = curve.displacement_with_derivative(gamma[0])
    torch.testing.assert_close((displacement, derivative), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(elsewhere, curve.displacement(gamma[1:]), rtol=1e-10, atol=1e-12)


@every_transform
def test_derivative_equals_finite_differences(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    curve, h = transform(x), 1e-5
    f, df = curve.with_derivative(gamma)
    torch.testing.assert_close(df, (curve(gamma + h) - curve(gamma - h)) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(f, curve(gamma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(curve.displacement(gamma), f - x, rtol=1e-9, atol=1e-12)
    if not isinstance(transform, ndm.Identity):
        assert df[gamma > -2].abs().max() > 1e-3


@learned
def test_gradients_reach_every_parameter(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    for which in (0, 1):  # through F, and through dF/dgamma
        transform.zero_grad()
        out = transform(x).with_derivative(gamma)[which]
        (out * torch.randn_like(out)).sum().backward()
        for name, p in transform.named_parameters():
            if which == 1 and name == "net.output.bias" and transform.gate == "free":
                continue  # a constant added to F
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().max() > 0, name


@learned
def test_gradients_of_the_derivative_equal_finite_differences(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    gamma = gamma[:1] * 0.3
    weight = torch.randn(1, B, *shape, dtype=torch.float64)

    def value() -> Tensor:
        return (transform(x).with_derivative(gamma)[1] * weight).sum()

    parameters = list(transform.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
    h, values = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p += sign * h * v
            values.append(value())
    assert slope.item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-5)


@every_transform
def test_save_and_load(make, shape) -> None:
    transform, (x, gamma) = make(shape).double(), examples(shape)
    rebuilt = from_config(json.loads(json.dumps(transform.config())), allow=[Rise]).double()
    rebuilt.load_state_dict(transform.state_dict())
    for ours, theirs in zip(rebuilt(x).with_derivative(gamma), transform(x).with_derivative(gamma), strict=True):
        assert torch.equal(ours, theirs)


@every_transform
def test_repr_names_the_class(make, shape) -> None:
    transform = make(shape)
    assert type(transform).__name__ in repr(transform)


@every_transform
@pytest.mark.parametrize("points", [(B + 1,), (B, P), (2, 2, B), ()])
def test_noise_levels_of_another_batch_are_refused(make, shape, points) -> None:
    curve = make(shape)(torch.zeros(B, *shape))
    for method in (curve, curve.with_derivative):
        with pytest.raises(ValueError, match="gamma must have shape"):
            method(torch.zeros(points))


@every_transform
def test_a_schedule_decides_the_range_unless_it_is_given(make, shape) -> None:
    transform = make(shape)
    transform.set_gamma_range(-4.0, 2.0)
    if isinstance(transform, (ndm.Neural, ndm.Separable)):
        assert transform.gamma_range == (-4.0, 2.0)
        given = type(transform)(transform.net, gamma_range=(-9, 1))
        given.set_gamma_range(-4.0, 2.0)
        assert given.gamma_range == (-9.0, 1.0)
        with pytest.raises(ValueError, match="gamma_range"):
            type(transform)(transform.net, gamma_range=(1.0, 1.0))


# ---- differences of F near the data

CLOSING = {k: v for k, v in FAMILY.items() if not k.endswith("free")}


@pytest.mark.parametrize(("make", "shape"), CLOSING.values(), ids=CLOSING)
def test_contrast_is_accurate_where_subtraction_is_not(make, shape) -> None:
    gamma, batch = -13.3, 200
    x = torch.randn(batch, *shape)
    residual = 1e-3 * math.exp(gamma / 2) * torch.randn(batch, *shape)  # a good denoiser's error
    x_hat = x - residual
    transform = make(shape)

    def offset(x: Tensor, transform) -> Tensor:
        at = torch.full((batch,), gamma, dtype=x.dtype)
        level = NoiseLevel(*[at] * 5)
        return ContinuousTime(level, torch.ones_like(at)).path_value(transform(x)).offset

    at = torch.full((batch,), gamma)
    at = ContinuousTime(NoiseLevel(*[at] * 5), torch.ones_like(at))
    contrast = transform.difference(at.path_value(transform(x)), x_hat, residual, at.path_value)
    subtracted = (x + offset(x, transform)) - (x_hat + offset(x_hat, transform))

    transform = transform.double()
    x, residual = x.double(), residual.double()
    exact = residual + offset(x, transform) - offset(x - residual, transform)

    def error(approximate: Tensor) -> float:
        return ((approximate.double() - exact).norm() / exact.norm()).item()

    assert exact.norm() > 0
    assert error(contrast) < 2e-3
    assert error(subtracted) > 20 * error(contrast)


@every_transform
def test_contrast_is_the_difference_of_y(make, shape) -> None:
    transform, (x, _) = make(shape).double(), examples(shape)
    x_hat = torch.randn_like(x)
    gamma, eta = torch.linspace(-9, 4, B).double(), torch.linspace(0.3, 2, B).double()
    at = ContinuousTime(NoiseLevel(*[gamma] * 5), eta)

    def y(x: Tensor) -> Tensor:
        f, df = transform(x).with_derivative(gamma)
        return f - (2 / (1 + eta**2)).reshape(-1, *[1] * len(shape)) * df

    contrast = transform.difference(at.path_value(transform(x)), x_hat, x - x_hat, at.path_value)
    torch.testing.assert_close(contrast, y(x) - y(x_hat), rtol=1e-10, atol=1e-12)


# ---- a curve of one's own


class Turning(ndm.Curve):
    """Defined by its displacement alone."""

    def displacement(self, gamma: Tensor) -> Tensor:
        return self.x * torch.sigmoid(gamma).reshape(*gamma.shape, 1)


class Turns(ndm.Transform):
    def forward(self, x: Tensor) -> Turning:
        return Turning(x)


def test_a_curve_is_defined_by_its_displacement_alone() -> None:
    x = torch.randn(B, 2, dtype=torch.float64)
    gamma = torch.linspace(-3, 3, B, dtype=torch.float64)
    slope = Turns()(x).displacement_with_derivative(gamma)[1]
    torch.testing.assert_close(slope, x * (torch.sigmoid(gamma) * torch.sigmoid(-gamma))[:, None])
    model = ndm.NDM(ndm.LinearSchedule(), Turns(), ndm.Denoiser(net((2,))))
    assert model.bound(torch.randn(4, 2)).total.isfinite().all()


def test_a_number_is_the_noise_level_of_all_examples() -> None:
    x = torch.randn(B, 2)
    torch.testing.assert_close(Turns()(x)(-2.0), Turns()(x)(torch.full((B,), -2.0)))
