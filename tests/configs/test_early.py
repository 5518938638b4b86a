"""Checks of the command line that need no PyTorch: their sentences are those of the parser."""

from __future__ import annotations

import pytest

from ndm.configs.configuration import Configuration, _parser
from ndm.configs.early import CLASSES, OPTIONS, check_overrides, known_classes
from ndm.configs.explaining import BASES, _class_names, _options


def test_the_options_are_those_of_the_parser() -> None:
    assert list(OPTIONS) == _options(_parser())


@pytest.mark.parametrize("option", CLASSES)
def test_the_classes_of_an_option_are_those_of_the_parser(option: str) -> None:
    assert known_classes(option) == _class_names(BASES[option.rpartition(".")[2]])


@pytest.mark.parametrize(
    "words",
    [
        "--training.rate foo",
        "--trainer.compile foo",
        "--training.ema x",
        "--trainer.max_time x",
        "--trainer.patience x",
        "--trainer.max_steps x",
        "--training.batch_size x",
        "--seed x",
        "--trainer.nope 3",
        "--nope=3",
        "--model.nope 3",
        "--model.transform Nope",
        "--model.schedule=LinearSchedul",
        "--data Nope",
    ],
)
def test_a_wrong_word_is_answered_as_by_the_parser(words: str) -> None:
    with pytest.raises(ValueError, match=r"must be|no option|no class") as early:
        check_overrides(words.split())
    with pytest.raises(ValueError, match=r"must be|no option|no class") as late:
        Configuration.read("toy", words.split())
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize("words", ["--training.ema 2", "--training.steps 0", "--trainer.devices -1"])
def test_a_number_out_of_range_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words.split()[0].removeprefix('--')} must be .*, got"):
        check_overrides(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--trainer.max_steps auto --training.steps null --trainer.max_time=1e3",
        "--trainer.accelerator foo --training.standardize false --training.rate constant",
        "--model.transform Neural --model.transform.net UNet --model.transform.net.channels 1",
        "--data Table --data.columns+ a --data.path x.csv --seed 3 --model.schedule.help",
        "stray",
    ],
)
def test_what_may_be_right_is_left_to_the_parser(words: str) -> None:
    check_overrides(words.split())


def test_classes_of_other_packages_are_left_to_the_parser() -> None:
    check_overrides(["--model.transform", "Custom", "--data=mine.Data"], others=True)
    check_overrides(["--model.transform", "mine.Custom", "--model.reverse_variance", "learned"])
