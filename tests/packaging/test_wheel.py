"""The wheel and the sdist: what is in them, and that the wheel works in a fresh environment outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ndm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: What the library alone, without extras, is to do.
LIBRARY = """
import tempfile, torch, ndm
from ndm.data import Pinwheel
from ndm.networks import ResidualMLP
assert "site-packages" in ndm.__file__, ndm.__file__
data = Pinwheel(train=500, validation=100, test=100)
transform = ndm.Separable(ResidualMLP(2, hidden=16, heads=2, level=False), terms=2)
schedule = ndm.LearnedSchedule(gamma_min=-6.0, learn_endpoints=True)
standardize = ndm.Standardize.fit(data.train)
model = ndm.NDM(schedule, transform, ndm.Denoiser(ResidualMLP(2, hidden=16)), standardize=standardize)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for x in data.train.split(100):
    loss = model.bound(x).total.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
neural = ndm.NDM(ndm.LinearSchedule(), ndm.Neural(ResidualMLP(2, hidden=8)), ndm.Denoiser(ResidualMLP(2, hidden=8)))
neural.bound(data.train[:8]).total.sum().backward()
model.eval().calibrate(data.train[:100], 5)
assert model.sample(4, steps=5).isfinite().all()
assert ndm.sample(model, 4, (2,), method="ode", steps=None).isfinite().all()
assert model.log_prob(data.test[:4], tolerance=0.1).isfinite().all()
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder + "/m")
    again = ndm.NDM.from_pretrained(folder + "/m").eval()
    at = torch.full((len(data.test),), 0.5)
    bounds = [m.bound(data.test, times=at, generator=torch.Generator().manual_seed(0)).total for m in (model, again)]
    assert torch.equal(*bounds)
print("works")
"""


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=1200, check=False,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=ROOT)
    return out


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """environment(python): the Python of a new environment, which takes gigabytes and is removed at the end."""
    folder = tmp_path / "env"

    def make(python: str) -> Path:
        run(python, "-m", "venv", folder, cwd=tmp_path)
        return folder / "bin" / "python"

    yield make
    shutil.rmtree(folder, ignore_errors=True)


def test_what_is_in_them(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    assert sdist.name == f"ndm-{ndm.__version__}.tar.gz"
    assert max(sdist.stat().st_size, wheel.stat().st_size) < 1_000_000
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ndm/py.typed", "ndm/configs/table.yaml", "ndm/cli/train.py"} <= names
    assert all(name.startswith(("ndm/", f"ndm-{ndm.__version__}.dist-info/")) for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "SECURITY.md", "constraints.txt", "tests/conftest.py"} <= inside


def test_the_wheel_works_in_a_fresh_environment(
    built: Path, tmp_path: Path, environment: Callable[[str], Path]
) -> None:
    python = environment(sys.executable)
    (wheel,) = built.glob("*.whl")
    constraints = ("-c", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", *constraints, wheel, cwd=tmp_path)
    assert run(python, "-c", LIBRARY, cwd=tmp_path).stdout == "works\n"
    command = python.parent / "ndm"
    assert run(command, "--version", cwd=tmp_path).stdout == f"ndm {ndm.__version__}\n"
    lacking = run(command, "train", "toy", cwd=tmp_path, check=False)
    assert lacking.returncode == 2
    assert lacking.stderr.startswith("ndm: error: This needs the package ")
    assert "pip install " in lacking.stderr
    assert lacking.stderr.count("\n") == 1
    run(python, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[train,tables]", cwd=tmp_path)
    rows = [f"{i % 7 + i / 9:.3f},{i * i % 11 - i / 5:.3f}\n" for i in range(99)]
    (tmp_path / "my.csv").write_text("a,b\n" + "".join(rows))
    short = ["--trainer.max_steps", "4", "--trainer.accelerator", "cpu"]
    run(command, "train", "table", "--data.path", "my.csv", "--out", "run", *short, cwd=tmp_path)
    run(command, "score", "run", "my.csv", "--out", "scores.csv", "--max-rows", "3", cwd=tmp_path)
    assert (tmp_path / "scores.csv").read_text().startswith("row,nelbo,")


def others() -> list[str]:
    """Other Pythons that are supported and that this machine has."""
    found = []
    for minor in range(10, 14):
        candidates = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
        for python in filter(None, candidates):
            version = subprocess.run([python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True)
            if version.stdout.strip() == str(minor).encode() and minor != sys.version_info[1]:
                found.append(str(python))
                break
    return [found[0], found[-1]] if len(found) > 1 else found


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_the_library_works_with_the_oldest_and_newest_python_there_is(
    built: Path, tmp_path: Path, environment: Callable[[str], Path], which: str
) -> None:
    pythons = others()
    if not pythons:
        pytest.skip("there is no other supported Python on this machine")
    python = environment(pythons[0 if which == "oldest" else -1])
    (wheel,) = built.glob("*.whl")
    old = ["torch==2.4.*", "numpy<2"] if which == "oldest" else []
    run(python, "-m", "pip", "install", "--quiet", wheel, *old, cwd=tmp_path)
    assert run(python, "-c", LIBRARY, cwd=tmp_path).stdout == "works\n"
