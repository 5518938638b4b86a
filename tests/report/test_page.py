"""The page as a whole: right HTML that loads nothing, and is written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ndm.data import Pinwheel
from ndm.report import report
from ndm.report.sections import bound, samples
from tests.report.pages import NAME, PAGES, SECTIONS, SVG, Only, parse, section, words

# ---- HTML


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_right_html_and_complete(pages: dict[str, Path], name: str) -> None:
    root = parse(pages[name])
    assert [e.get("id") for e in root.iter("section")] == SECTIONS
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(ids)) == len(ids)
    targets = [e.get("href")[1:] for e in root.iter() if (e.get("href") or "").startswith("#")]
    named = re.findall(r"url\(#([^)]*)\)", pages[name].read_text())
    assert set(targets) | set(named) <= set(ids)
    assert [e.get("href") for e in next(root.iter("nav")).iter("a")] == [f"#{slug}" for slug in SECTIONS]
    assert pages[name].stat().st_size < 2_000_000


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    root = parse(pages[name])
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in ("src", "href", "srcset", "data", "poster") or "href" in str(key):
                assert value.startswith(("#", "data:")), (element.tag, key, value[:80])
    assert not re.search(r"url\((?!#)|@import|@font-face", text)
    assert "http" not in re.sub(r"<meta http-equiv=[^>]*>", "", text)
    assert not {"script", "iframe", "object", "embed", "video", "audio"} & {e.tag for e in root.iter()}
    assert "default-src 'none'" in next(e.get("content") for e in root.iter("meta") if e.get("http-equiv"))


@pytest.mark.parametrize("name", PAGES)
def test_nothing_has_to_be_seen(pages: dict[str, Path], name: str) -> None:
    root = parse(pages[name])
    assert all(e.get("alt") for e in root.iter("img"))
    for drawing in root.iter(SVG + "svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing.get("role") == "img" and drawing.get("aria-label"))
    regions = [e for e in root.iter() if "scroll" in (e.get("class") or "").split()]
    ids = {e.get("id") for e in root.iter()}
    for region in regions:
        assert region.get("tabindex") == "0"
        assert region.get("role") == "region"
        assert region.get("aria-label") or region.get("aria-labelledby") in ids
    parents = {child: parent for parent in root.iter() for child in parent}
    assert all("scroll" in parents[t].get("class") for t in root.iter("table"))
    assert all(cell.get("scope") in ("row", "col") for cell in root.iter("th"))
    levels = [int(e.tag[1]) for e in root.iter() if e.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert next(root.iter("html")).get("lang") == "en"


def test_names_come_out_as_text(pages: dict[str, Path]) -> None:
    root = parse(pages["mixed"])
    assert words(next(root.iter("h1"))) == f"table, {NAME} and images"
    assert NAME in words(next(root.iter("title")))
    assert any("<i>$b_{$, in m" in words(t) for t in root.iter(SVG + "text"))
    assert not list(root.iter("script"))
    assert not [e for e in root.iter() if e.tag in ("b", "i")]


# ---- how it is written


def test_the_same_runs_give_the_same_page(pages: dict[str, Path], images: Path, tmp_path: Path, only: Only) -> None:
    again = report([images], tmp_path / "other-name.html", examples=12, device="cpu")
    assert again.read_bytes() == pages["images"].read_bytes()
    only(samples)
    first = report([images], tmp_path / "first.html", examples=12, device="cpu")
    other = report([images], tmp_path / "third.html", examples=12, device="cpu", seed=1)
    assert first.read_text().replace("seed 0", "") != other.read_text().replace("seed 1", "")


def test_the_callers_random_numbers_are_left_alone(baseline: Path, tmp_path: Path, only: Only) -> None:
    only()
    state = torch.random.get_rng_state()
    report([baseline], tmp_path / "r.html", examples=4, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_data_set_of_the_users_own_can_be_passed(points: Path, tmp_path: Path, only: Only) -> None:
    only(bound)
    run = Path(shutil.copytree(points, tmp_path / "run"))
    (run / "config.yaml").unlink()
    page = report([run], tmp_path / "r.html", device="cpu", data=lambda path: Pinwheel(train=4, validation=4, test=9))
    assert "Measured on 9 test examples" in words(section(parse(page), "bound"))


def test_a_page_is_written_whole_or_not_at_all(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: Only
) -> None:
    only()
    out = tmp_path / "r.html"
    out.write_text("old")

    def broken(*paths: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="full"):
        report([baseline], out, examples=4, device="cpu", overwrite=True)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]


def test_what_cannot_be_done_is_refused_at_once(points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndm.report.page.measure", None)  # nothing is measured
    out = tmp_path / "r.html"
    with pytest.raises(ValueError, match=r"must end in \.html"):
        report([points], tmp_path / "r.pdf")
    with pytest.raises(FileNotFoundError, match="no folder"):
        report([points], tmp_path / "none" / "r.html")
    with pytest.raises(FileNotFoundError, match="no run"):
        report([points, tmp_path / "none"], out)
    with pytest.raises(ValueError, match="at least 2"):
        report([points], out, examples=1)
    with pytest.raises(ValueError, match="seed"):
        report([points], out, seed=-1)
    with pytest.raises(ValueError, match="at least one run"):
        report([], out)
    with pytest.raises(ValueError, match="is not available"):
        report([points], out, device="nonsense")
    out.write_text("old")
    with pytest.raises(FileExistsError, match="nothing was written"):
        report([points], out)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]
