import hashlib
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from support.surround import RECIPE, surround

from data_cache.files import file_sha256
from pipeline.errors import RecipeError
from pipeline.recipe.config import parse_recipe
from pipeline.runs.stage_one import open_teacher
from pipeline.runs.teacher_cache import _portable
from pipeline.weights.fetch import WeightsError
from pipeline.weights.hub import hub_weights, weights_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = f"hub:depth-anything/Depth-Anything-V2-Base-hf@{COMMIT}"


@pytest.fixture
def hub(monkeypatch, teacher_folder, tmp_path):
    """A hub that has one snapshot; the calls that it got. `cached` names the folder that its client has already."""

    class Hub:
        def __init__(self) -> None:
            self.calls: list[dict] = []
            self.cached: Path | None = None
            self.error: Exception | None = None

        def snapshot_download(self, hub_id, **options):
            if options.get("local_files_only"):
                if self.cached is None:
                    raise LocalEntryNotFoundError("not here")
                return str(self.cached)
            self.calls.append({"id": hub_id, **options})
            if self.error is not None:
                raise self.error
            self.cached = Path(shutil.copytree(teacher_folder, tmp_path / "snapshot"))
            return str(self.cached)

    there = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", there.snapshot_download)
    return there


def test_a_pinned_teacher_is_downloaded_once_with_its_hash_and_licence(hub, teacher_folder):
    found = hub_weights(BASE)
    assert found.sha256 == file_sha256(teacher_folder / "model.safetensors")
    assert (found.licence, found.route) == ("CC-BY-NC-4.0", "model hub")
    assert hub_weights(BASE) == found
    (call,) = hub.calls
    assert (call["id"], call["revision"]) == ("depth-anything/Depth-Anything-V2-Base-hf", COMMIT)
    assert "*.safetensors" in call["allow_patterns"]


def test_an_interrupted_download_is_gone_on_with(hub, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text("{}")
    hub.cached = tmp_path / "half"
    assert (hub_weights(BASE).path / "model.safetensors").is_file()
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    "name",
    [
        "hub:depth-anything/Depth-Anything-V2-Base-hf",
        "hub:depth-anything/Depth-Anything-V2-Base-hf@main",
        "hub:depth-anything/Depth-Anything-V2-Base-hf@0123456",
        f"hub:Depth-Anything-V2-Base-hf@{COMMIT}",
        f"hub:a/b/c@{COMMIT}",
        f"hub:a/b@{COMMIT.upper()}",
    ],
)
def test_a_name_without_its_commit_is_refused(hub, name):
    with pytest.raises(RecipeError, match=r"expected hub:owner/name@<40-digit commit>; a branch or tag can move"):
        hub_weights(name)
    assert not hub.calls


def test_what_the_hub_says_and_what_to_do_is_told(hub):
    hub.error = OSError("no route to host\nand more")
    with pytest.raises(WeightsError, match=r"OSError: no route to host\nRemedy: .*hf download depth-anything/Dep"):
        hub_weights(BASE)


def test_an_unknown_model_has_an_unknown_licence(hub):
    assert hub_weights(f"hub:somebody/depth@{COMMIT}").licence == "unknown: see the model card"


def test_the_sum_of_several_files_is_that_of_their_sums_by_hand(tmp_path):
    """As `sha256sum text/model.safetensors unet/a.safetensors | sha256sum` has it."""
    for name, text in (("unet/a.safetensors", "two"), ("text/model.safetensors", "one"), ("model_index.json", "{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    listing = f"{one}  text/model.safetensors\n{two}  unet/a.safetensors\n"
    assert weights_sha256(tmp_path) == hashlib.sha256(listing.encode()).hexdigest()
    with pytest.raises(RecipeError, match="expected model.safetensors or the safetensors of a diffusers pipeline"):
        weights_sha256(tmp_path / "nowhere")


def test_a_recipe_names_a_teacher_of_the_hub(hub):
    recipe = parse_recipe(RECIPE.format(teacher=BASE), "r.toml", name="r")
    teacher = open_teacher(recipe)
    assert teacher.name == f"Depth-Anything-V2-Base-hf@{COMMIT}"
    assert teacher.licence == "CC-BY-NC-4.0"
    assert _portable(recipe) == recipe  # a worker asks the hub under the same name


def test_a_teacher_that_is_nowhere_lists_what_may_be_named(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(teacher=tmp_path / "nowhere"))
    code, text = surround("teacher-cache", recipe, "--run", tmp_path / "run")
    assert (code, "nor hub:owner/name@<40-digit commit>" in text) == (2, True), text
