from __future__ import annotations

import pytest

from ndm.training import TrainerOptions, TrainingOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("transform_rate", 0.0),
        ("endpoint_rate", 0.0),
        ("weight_decay", -1.0),
        ("warmup", -1),
        ("rate", "linear"),
        ("ema", 1.0),
        ("batch_size", 0),
        ("curvature", -0.1),
        ("keep", "first"),
    ],
)
def test_training_options_refuse_what_is_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field} must be .*, got {value}"):
        TrainingOptions(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("max_time", 0.0),
        ("devices", 0),
        ("gradient_clip_val", 0.0),
        ("log_every_n_steps", 0),
        ("val_check_interval", 0),
    ],
)
def test_trainer_options_refuse_what_is_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{field} must be .*, got {value}"):
        TrainerOptions(**{field: value})


def test_a_training_has_an_end() -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps or trainer\.max_time"):
        TrainerOptions(max_steps=None)
    assert TrainerOptions(max_steps=None, max_time=1.0).max_time == 1.0
