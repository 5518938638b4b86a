"""Trainings that are killed go on to the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.devices.processes import assert_same_run_exactly, checkpoint, kill, start, train, wait_for

pytestmark = pytest.mark.slow


def last_step(out: Path) -> int:
    """The last step in a run's metrics, whose last line may be half written; 0 if there is none."""
    try:
        lines = (out / "metrics.csv").read_text().splitlines()[1:-1]
    except FileNotFoundError:
        return 0
    return int(lines[-1].split(",")[0]) if lines else 0


def test_a_run_that_is_killed_goes_on_to_the_same_weights(points: Path, tmp_path: Path) -> None:
    whole, broken = train(points, tmp_path / "whole"), tmp_path / "broken"
    process = start("-m", "ndm", "train", points, "--out", broken)
    wait_for(lambda: last_step(broken) > 45 and last_step(broken) % 20 > 2, process)
    kill(process)
    assert not (broken / "model").exists()
    assert checkpoint(broken)["global_step"] % 20 == 0
    assert last_step(broken) > checkpoint(broken)["global_step"]
    assert_same_run_exactly(whole, train(points, broken, "--resume"))


#: ndm, but for the checkpoint of step 40, of which half gets to the disk: argv[1] tells when.
HALF = """
import io, sys, time
from pathlib import Path
import torch
from ndm.cli import main
save = torch.save
def half(what, file):
    if what["global_step"] != 40 or "last" not in file.name:
        return save(what, file)
    whole = io.BytesIO()
    save(what, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    Path(sys.argv[1]).touch()
    time.sleep(100)
torch.save = half
main(sys.argv[2:])
"""


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_has_the_one_before(points: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "60")
    whole, broken, now = train(points, tmp_path / "whole", *short), tmp_path / "broken", tmp_path / "now"
    process = start("-c", HALF, now, "train", points, "--out", broken, *short)
    wait_for(now.exists, process)
    kill(process)
    assert checkpoint(broken)["global_step"] == 20
    assert_same_run_exactly(whole, train(points, broken, *short, "--resume"))
    assert {p.name for p in (broken / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
