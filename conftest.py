"""The example of README.md runs in an empty folder, for it writes a picture."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def readme(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.path.name == "README.md":
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        monkeypatch.chdir(tmp_path_factory.mktemp("readme"))
