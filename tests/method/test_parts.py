"""A part remembers how it was built; a configuration builds nothing but parts."""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest
import torch
from torch import nn

import ndm
from ndm.method.parts import Part, from_config
from ndm.networks import ResidualMLP


class Base(Part):
    def __init__(self, width: int = 3, *, names: tuple[str, ...] = ("a", "b"), **options: float) -> None:
        super().__init__()
        self.width, self.names, self.options = width, names, options


class Derived(Base):
    def __init__(self, depth: int, net: nn.Module | None = None) -> None:
        super().__init__(width=2 * depth)
        self.depth, self.net = depth, net


class Heir(Derived):
    """Has no constructor of its own."""


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def test_arguments_are_recorded_with_their_defaults() -> None:
    config = Base(names=("x",), rate=0.5).config()
    assert config == {"class_path": path_of(Base), "init_args": {"width": 3, "names": ["x"], "rate": 0.5}}


@pytest.mark.parametrize("cls", [Derived, Heir])
def test_the_outermost_constructor_is_the_one_recorded(cls) -> None:
    assert cls(4).config() == {"class_path": path_of(cls), "init_args": {"depth": 4, "net": None}}


@pytest.mark.parametrize("make", [ndm.Identity, ndm.GaussianDecoder, ndm.PosteriorVariance])
def test_a_part_without_a_constructor_has_a_configuration(make) -> None:
    config = make().config()
    assert config["init_args"] == {}
    assert type(from_config(config)) is make


def test_the_configuration_follows_a_module_that_was_replaced() -> None:
    part = Derived(1, net=Base(5))
    part.net = Base(6)
    assert part.config()["init_args"]["net"]["init_args"]["width"] == 6


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_remember_too_and_stand_on_their_own(duplicate) -> None:
    part = Derived(1, net=Base(5))
    other = duplicate(part)
    part.net = Base(6)
    assert other.config()["init_args"]["net"]["init_args"]["width"] == 5


def test_a_tree_survives_json() -> None:
    net = ResidualMLP(2, hidden=8, depth=1)
    part = ndm.Separable(ResidualMLP(2, heads=5, level=False), terms=5, basis="legendre", gamma_range=(-9.0, 4.5))
    for original in (net, part, ndm.Denoiser(net, "eps"), Derived(2, net)):
        config = json.loads(json.dumps(original.config()))
        rebuilt = from_config(config, allow=[Derived])
        assert type(rebuilt) is type(original)
        assert rebuilt.config() == original.config()
        assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in original.parameters()]


@pytest.mark.parametrize("value", [lambda x: x, nn.Linear(2, 2), torch.ones(1), {"f": print}])
def test_what_cannot_be_written_is_refused_by_name(value) -> None:
    with pytest.raises(TypeError, match=r"Derived\(net=\.\.\.\)"):
        Derived(1, value).config()


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "torch.nn.Linear",
        "ndm.method.parts.nn.Linear",
        "ndm.method.parts.importlib.import_module",
        "ndm.method.parts.from_config",
        "ndm.nowhere.Part",
        "ndm.method.schedules.Nothing",
        "ndm.method.transforms.bases.basis_named",
        "ndm.method.schedules.NoiseLevel",
        "ndm..os.system",
        "ndm",
        "",
        None,
        7,
        ["ndm.Identity"],
    ],
)
def test_only_parts_are_built(path, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(ValueError, match="not a part of ndm"):
        from_config({"class_path": path, "init_args": {"command": "true"}})
    with pytest.raises(ValueError, match="not a part of ndm"):  # nested, too
        from_config({"class_path": "ndm.method.transforms.linear.Scale", "init_args": {"a": {"class_path": path}}})
    assert not called


def test_own_classes_are_built_only_when_allowed() -> None:
    config = Base(7).config()
    with pytest.raises(ValueError, match="allow="):
        from_config(config)
    assert from_config(config, allow=[Base]).width == 7


@pytest.mark.parametrize("arguments", [{"nonsense": 1}, [1], "x", 5])
def test_arguments_that_do_not_fit_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"LinearSchedule"):
        from_config({"class_path": "ndm.method.schedules.LinearSchedule", "init_args": arguments})


@pytest.mark.parametrize("config", [{}, None, [], "ndm.Identity", {"init_args": {}}])
def test_a_configuration_without_a_class_is_refused(config) -> None:
    with pytest.raises(ValueError, match="class_path"):
        from_config(config)


def test_left_out_arguments_of_parts_are_at_their_defaults() -> None:
    from ndm.method.parts import with_defaults

    net = ndm.networks.ResidualMLP(2)
    config = ndm.Denoiser(net, "eps").config()
    earlier = {
        "class_path": "ndm.Denoiser",
        "init_args": {
            "net": {"class_path": "ndm.networks.ResidualMLP", "init_args": {"features": 2}},
            "parameterization": "eps",
        },
    }
    assert with_defaults(earlier) == config
    other = ndm.Denoiser(net, "eps", path="ve").config()
    assert with_defaults(earlier) != with_defaults(other) == other
    for unknown in ({"class_path": "ndm.Nothing"}, {"class_path": "mine.Denoiser", "init_args": {"a": 1}}, 3, [None]):
        assert with_defaults(unknown) == unknown
