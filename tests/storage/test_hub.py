"""Model cards, and the hub's calls: no network here, so a folder plays the hub and the real signatures are held to."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from torch import Tensor, nn

import ndm
from ndm.method.parts import Part
from ndm.networks import ResidualMLP
from ndm.storage.checkpoints import CARD, CHECKSUMS, CONFIG, WEIGHTS
from ndm.storage.hub import fetch, model_card, push, was_edited

EVALUATION = {
    "about": {"data": "Digits", "split": "test", "seed": 0, "parameters": 5},
    "rows": [
        {"quantity": "bound", "steps": 10, "variance": "posterior", "value": 2.42213, "stderr": 0.0178, "unit": "nats"},
        {"quantity": "bound", "steps": None, "variance": None, "value": 1.9, "stderr": 0.01, "unit": "nats"},
        {"quantity": "log-likelihood", "steps": None, "variance": None, "value": 1.8, "stderr": 0.01, "unit": "nats"},
    ],
}


class Own(Part):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return self.layer(z)


def make(**parts) -> ndm.NDM:
    net = ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False)
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), **parts)


def metadata(text: str) -> dict:
    """As the hub reads it."""
    return huggingface_hub.ModelCard(text).data.to_dict()


# ---- cards


def test_a_card_says_what_the_model_is() -> None:
    model = make(decoder=ndm.DiscretizedDecoder(16))
    text = model_card(model, {"license": "mit", "shape": (1, 2), "tags": ["digits"], "datasets": ["mine"]}, "me/model")
    assert metadata(text) == {
        "library_name": "ndm",
        "license": "mit",
        "tags": ["ndm", "diffusion", "neural-diffusion-model", "digits"],
        "datasets": ["mine"],
    }
    assert "# model\n" in text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "(1, 2)" in text
    assert "16 levels" in text
    count = sum(p.numel() for p in model.denoiser.parameters())
    row = next(line for line in text.splitlines() if line.startswith("| denoiser |"))
    assert row.endswith(f"| {count:,} |")
    assert "Denoiser(net=ResidualMLP(features=2, hidden=8" in row


def test_without_more_knowledge_nothing_is_invented() -> None:
    text = model_card(make())
    assert metadata(text).keys() == {"library_name", "tags"}
    assert "levels" not in text
    assert "Evaluation" not in text
    assert "One example has shape" not in text


def test_the_cards_python_works(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make(standardize=ndm.Standardize([1.0, 2.0], [1.0, 1.0])).calibrate(torch.randn(9, 2), 100)
    model.save_pretrained("path/to/this/folder")
    code = (tmp_path / "path/to/this/folder" / CARD).read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    names: dict = {}
    exec(code, names)
    assert names["x"].shape == (16, 2)  # from the standardisation


def test_a_card_names_the_classes_that_need_leave() -> None:
    text = model_card(ndm.NDM(ndm.LinearSchedule(), ndm.Neural(Own()), ndm.Denoiser(Own())))
    assert 'from_pretrained("path/to/this/folder", allow=[Own])' in text


@pytest.mark.parametrize("evaluation", [EVALUATION, EVALUATION["rows"]])
def test_figures_come_with_their_errors(evaluation) -> None:
    text = model_card(make(), {"evaluation": json.loads(json.dumps(evaluation))})
    assert "| bound | 10 | posterior | 2.4221 ± 0.0178 | nats |" in text
    assert "| bound | continuous | - | 1.9000 ± 0.0100 | nats |" in text
    assert "| log-likelihood | - | - | 1.8000 ± 0.0100 | nats |" in text
    assert ("data Digits, split test, seed 0" in text) == (evaluation is EVALUATION)


@pytest.mark.parametrize("evaluation", [3, [3], {"rows": [{"value": 1}]}, {"figures": []}, "high"])
def test_figures_that_are_not_rows_are_refused(evaluation) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.json"):
        model_card(make(), {"evaluation": evaluation})


def test_metadata_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be written as YAML"):
        make().save_pretrained(tmp_path / "model", card={"license": object()})
    with pytest.raises(ValueError, match="list of strings"):
        make().save_pretrained(tmp_path / "model", card={"tags": "one"})
    assert not list(tmp_path.iterdir())


def test_metadata_keep_their_values_whatever_they_are() -> None:
    values = {"license": "no", "description_": 'quotes " and: colons #', "language": ["no", "ñ"], "date": "2024-01-01"}
    assert {k: v for k, v in metadata(model_card(make(), values)).items() if k in values} == values


# ---- a folder with a card


def test_an_unedited_card_follows_the_model_and_an_edited_one_is_kept(tmp_path: Path) -> None:
    path = make().save_pretrained(tmp_path / "model", card={"title": "First"})
    card = path / CARD
    assert not was_edited(card.read_text())
    make().save_pretrained(path, card={"title": "Second"})
    assert "# Second" in card.read_text()
    edited = card.read_bytes().replace(b"# Second", b"# My \xff years of work")  # not even UTF-8
    card.write_bytes(edited)
    make(decoder=ndm.DiscretizedDecoder(4)).save_pretrained(path, card={"title": "Third"})
    assert card.read_bytes() == edited
    assert ndm.NDM.from_pretrained(path).decoder.levels == 4


@pytest.mark.parametrize(
    "change", [lambda t: t + "\nMore.\n", lambda t: t.replace("license", "licence"), lambda _: "Mine.\n"]
)
def test_any_change_counts_as_an_edit(change) -> None:
    text = model_card(make(), {"license": "mit"})
    assert not was_edited(text)
    assert was_edited(change(text))


# ---- the hub


@dataclass
class Commit:
    commit_url: str = "https://hub/commit"
    pr_url: str = "https://hub/pull"


class Hub:
    """A folder that plays the hub. Every call is bound to the signature of the function that it stands for."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.calls: list[tuple[str, dict]] = []
        self.error: Exception | None = None
        for owner, name in (
            (huggingface_hub, "snapshot_download"),
            (huggingface_hub, "hf_hub_download"),
            (huggingface_hub.HfApi, "create_repo"),
            (huggingface_hub.HfApi, "create_branch"),
            (huggingface_hub.HfApi, "file_exists"),
            (huggingface_hub.HfApi, "upload_folder"),
        ):
            patch.setattr(owner, name, self.stand_in(name, inspect.signature(getattr(owner, name))))

    def stand_in(self, name: str, signature: inspect.Signature):
        def call(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            arguments.pop("self", None)
            self.calls.append((name, arguments))
            if self.error is not None:
                raise self.error
            return getattr(self, name)(**arguments)

        return call

    def snapshot_download(self, repo_id, allow_patterns, **_) -> str:
        assert allow_patterns == [CONFIG, WEIGHTS, CHECKSUMS]  # nothing else is even downloaded
        folder = self.root / "cache"
        folder.mkdir(exist_ok=True)
        for name in allow_patterns:
            if (self.root / repo_id / name).exists():
                shutil.copy(self.root / repo_id / name, folder)
        return str(folder)

    def hf_hub_download(self, repo_id, filename, **_) -> str:
        return str(self.root / repo_id / filename)

    def create_repo(self, repo_id, **_) -> None:
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def create_branch(self, **_) -> None:
        pass

    def file_exists(self, repo_id, filename, **_) -> bool:
        return (self.root / repo_id / filename).exists()

    def upload_folder(self, repo_id, folder_path, allow_patterns, **_) -> Commit:
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.root / repo_id / name)
        return Commit()

    def arguments(self, name: str) -> dict:
        return next(arguments for called, arguments in self.calls if called == name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Hub:
    monkeypatch.chdir(tmp_path)
    return Hub(tmp_path / "hub", monkeypatch)


def test_there_and_back(hub: Hub) -> None:
    model = make()
    url = model.push_to_hub("me/model", card={"license": "mit"}, private=True, token="secret", commit_message="Hello")
    assert url == "https://hub/commit"
    assert sorted(p.name for p in (hub.root / "me/model").iterdir()) == [CARD, CHECKSUMS, CONFIG, WEIGHTS]
    assert hub.arguments("create_repo") == {"repo_id": "me/model", "private": True, "exist_ok": True}
    upload = hub.arguments("upload_folder")
    assert (upload["commit_message"], upload["create_pr"], upload["revision"]) == ("Hello", False, None)
    assert not Path(upload["folder_path"]).exists()  # nothing is left behind
    assert "create_branch" not in [name for name, _ in hub.calls]
    assert 'from_pretrained("me/model")' in (hub.root / "me/model" / CARD).read_text()

    loaded = ndm.NDM.from_pretrained(
        "me/model", revision="v1", token="secret", cache_dir="c", force_download=True, local_files_only=True
    )
    assert torch.equal(loaded.denoiser.net.output.weight, model.denoiser.net.output.weight)
    download = hub.arguments("snapshot_download")
    assert {k: download[k] for k in ("revision", "token", "cache_dir", "force_download", "local_files_only")} == {
        "revision": "v1", "token": "secret", "cache_dir": "c", "force_download": True, "local_files_only": True,
    }  # fmt: skip


def test_a_branch_and_a_pull_request(hub: Hub) -> None:
    assert make().push_to_hub("me/model", branch="trial", create_pr=True) == "https://hub/pull"
    assert hub.arguments("create_branch") == {"repo_id": "me/model", "branch": "trial", "exist_ok": True}
    assert hub.arguments("upload_folder")["revision"] == "trial"
    assert hub.arguments("upload_folder")["create_pr"] is True
    assert hub.arguments("file_exists")["revision"] == "trial"


def test_a_card_edited_on_the_hub_is_kept(hub: Hub) -> None:
    make().push_to_hub("me/model", card={"title": "First"})
    card = hub.root / "me/model" / CARD
    make().push_to_hub("me/model", card={"title": "Second"})
    assert "# Second" in card.read_text()
    card.write_text("Mine.")
    make(decoder=ndm.DiscretizedDecoder(4)).push_to_hub("me/model", card={"title": "Third"})
    assert card.read_text() == "Mine."
    assert ndm.NDM.from_pretrained("me/model").decoder.levels == 4


def test_a_local_folder_wins(hub: Hub) -> None:
    make(decoder=ndm.DiscretizedDecoder(4)).push_to_hub("me/model")
    make(decoder=ndm.DiscretizedDecoder(5)).save_pretrained("me/model")
    hub.calls.clear()
    assert ndm.NDM.from_pretrained("me/model").decoder.levels == 5
    os.rename("me/model", "me/.model-old")  # a crash struck while it was replaced
    assert ndm.NDM.from_pretrained("me/model").decoder.levels == 5
    Path("me/empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no saved model at me/empty"):
        ndm.NDM.from_pretrained("me/empty")
    assert not hub.calls


@pytest.mark.parametrize(
    "path", ["/no/where", "./no/where", "../where", "where", "runs/digits/model", Path("no/where")]
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(hub: Hub, path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        ndm.NDM.from_pretrained(path)
    assert not hub.calls


def test_a_model_of_another_library_is_refused(hub: Hub) -> None:
    (hub.root / "you/other").mkdir(parents=True)
    (hub.root / "you/other" / CONFIG).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"you/other .* no model\.safetensors: it was not saved by ndm"):
        ndm.NDM.from_pretrained("you/other")


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub"))


ERRORS = {
    "no model": (errors.RepositoryNotFoundError("a\nb", response=response(404)), FileNotFoundError, "it is private"),
    "gated": (errors.GatedRepoError("a\nb", response=response(403)), PermissionError, "request access on its page"),
    "revision": (errors.RevisionNotFoundError("a\nb", response=response(404)), FileNotFoundError, "no revision 'v1'"),
    "not allowed": (errors.HfHubHTTPError("a\nb", response=response(403)), PermissionError, "with this permission"),
    "server": (errors.HfHubHTTPError("503 busy\nb", response=response(503)), OSError, "status 503: 503 busy$"),
    "not cached": (errors.LocalEntryNotFoundError("a\nb"), OSError, "is not in the cache"),
    "offline": (errors.OfflineModeIsEnabled("a\nb"), OSError, "could not be reached"),
    "connection": (httpx2.ConnectError("a\nb"), OSError, "could not be reached"),
    "time out": (httpx2.ReadTimeout("a\nb"), OSError, "could not be reached"),
    "token": (errors.LocalTokenNotFoundError("a\nb"), PermissionError, "hf auth login"),
    "name": (errors.HFValidationError("bad name\nb"), ValueError, "bad name$"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "match"), ERRORS.values(), ids=ERRORS)
def test_the_hubs_errors_are_one_sentence_each(hub: Hub, error: Exception, kind: type, match: str) -> None:
    hub.error = error
    for call in (
        lambda: ndm.NDM.from_pretrained("me/model", revision="v1"),
        lambda: make().push_to_hub("me/model", branch="v1"),
    ):
        with pytest.raises(kind, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "me/model" in str(caught.value)
        assert type(caught.value).__module__ == "builtins"
    with pytest.raises(kind, match="There is no folder me/model here"):
        fetch("me/model", revision="v1")


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "./model", "me/../you"])
def test_a_name_that_is_none_is_refused_before_the_hub_hears(hub: Hub, name: str) -> None:
    with pytest.raises(ValueError, match="user/model"):
        push(make(), name)
    assert not hub.calls


def test_a_model_that_cannot_be_saved_makes_no_repository(hub: Hub) -> None:
    with pytest.raises(TypeError, match="Scale"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Scale(lambda gamma: gamma), Own()).push_to_hub("me/model")
    assert not hub.calls


def test_without_the_package_a_sentence_says_what_to_install(hub: Hub, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"no folder me/model here.*pip install huggingface_hub"):
        ndm.NDM.from_pretrained("me/model")
    with pytest.raises(ImportError, match=r"pip install huggingface_hub"):
        make().push_to_hub("me/model")
    ndm.NDM.from_pretrained(make().save_pretrained("mine"))  # which needs no hub
