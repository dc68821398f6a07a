"""What the parts of `gpu.py` work on: a small data set on disk, a recipe for it, stage one, a cache. And its tests."""

import json
import os
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import DEVICE_OF_TESTS, FAILED, OK, ROOT, Found, NotInstalledError, Setting
from PIL import Image

from data_cache.errors import SettingError
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.rig_folder import run_rig_export
from pipeline.runs.stage_one import StageOne, find_teacher_weights, open_stage_one
from pipeline.runs.teacher_cache import run_teacher_cache


def frames(setting: Setting) -> Iterator[Found]:
    """Render a few frames once and keep them as a data set of JPEG files, as cameras give them; all parts read it."""
    sizes, folder = setting.sizes, setting.scratch / "frames"
    begin = time.perf_counter()
    last = sizes.rendered
    drive = [f'data.train=["drive-00[:{last}]"]', f'data.test=["drive-00[{last}:{last + 1}]"]']
    run_rig_export(load_recipe("demo", drive), folder)
    rig = json.loads((folder / "rig.json").read_text())
    for camera in rig["cameras"]:
        camera["width"], camera["height"] = (round(camera[side] * sizes.image_scale) for side in ("width", "height"))
        camera["intrinsics"][:2] = [[sizes.image_scale * x for x in row] for row in camera["intrinsics"][:2]]
    for path in (folder / "images").rglob("*.png"):
        with Image.open(path) as image:
            width, height = (round(side * sizes.image_scale) for side in image.size)
            image.resize((width, height), Image.Resampling.BICUBIC).save(path.with_suffix(".jpg"), quality=90)
    written = (folder / "frames.jsonl").read_text().replace(".png", ".jpg")
    *lines, test = [json.loads(line) for line in written.splitlines()]
    copies = [  # each a drive of its own, so that neighbours in time stay neighbours
        {**line, "id": f"copy-{i}/{j}", "drive": f"copy-{i}"}
        for i in range(sizes.copies)
        for j, line in enumerate(lines)
    ]
    listed = [*copies, {**test, "id": "last/0", "drive": "last"}]
    (folder / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in listed))
    splits = {"train": [f"copy-{i}" for i in range(sizes.copies)], "test": ["last"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    (folder / "rig.json").write_text(json.dumps(rig))
    what = f"{len(listed)} frames of six {width} x {height} JPEG, {last + 1} of them rendered"
    yield Found(what, time.perf_counter() - begin, "s", "on the CPU")


def gpu_recipe(setting: Setting, *overrides: str) -> Recipe:
    """A recipe for the data set of `frames`, at the sizes of the setting."""
    sizes = setting.sizes
    settings = (
        "bins.prob_stride=2",
        f"teacher_cache.input_size={list(sizes.teachers[0])}",
        f"teacher_cache.device={setting.device}",
        "teacher_cache.runtime=torch",
        f"student.input_size={list(sizes.student)}",
        f"student.encoder={sizes.encoders[0]}",
        "student.pretrained=false",
        f"train_student.device={setting.device}",
        f"train_student.steps={sizes.steps}",
        f"train_student.batch_rigs={sizes.batch_rigs}",
        "train_student.warmup_steps=5",
        "train_student.checkpoint_every=2",
        f"train_student.workers={sizes.workers}",
    )
    return load_recipe("rig", (*settings, *overrides), setting.scratch / "frames")


def gpu_stage_one(recipe: Recipe) -> StageOne:
    """Stage one with the real teacher, whose weights must be on this machine: elsewhere nobody looks for them.

    Raises:
        SettingError: if they are not.
    """
    name = recipe.teacher_cache.weights
    if find_teacher_weights(name) is None:
        raise SettingError(f"expected the weights {name} here; set SURROUND_WEIGHTS to a folder that holds {name}/")
    return open_stage_one(recipe)


def run_with_cache(setting: Setting, recipe: Recipe, name: str) -> RunFolder:
    """A new run folder. Its cache is shared: the first part that asks writes it, with the teacher in `auto`."""
    gpu_stage_one(recipe)
    shared = RunFolder(setting.scratch / "shared")
    run_teacher_cache(recipe, shared)
    run = RunFolder(setting.scratch / name)
    run.root.mkdir()
    run.cache.symlink_to(shared.cache)
    return run


def tests(setting: Setting) -> Iterator[Found]:
    """The tests that want a GPU: a row for all that passed, and one for each that did not."""
    try:
        import pytest
    except ImportError as error:
        raise NotInstalledError("pip install pytest") from error
    os.environ[DEVICE_OF_TESTS] = setting.device
    report = setting.scratch / "tests.xml"
    # Not with the options of the project, which ask for more packages.
    options = ["-q", "-c", str(ROOT / "pyproject.toml"), "-o", "addopts=", "--import-mode=importlib", "-m", "cuda"]
    code = pytest.main([*options, f"--junitxml={report}", str(ROOT / "tests/stages/test_cuda.py")])
    outcomes = [next((c for c in case if c.tag in ("failure", "error", "skipped")), None) for case in _cases(report)]
    for case, outcome in zip(_cases(report), outcomes, strict=True):
        if outcome is not None:
            state = OK if outcome.tag == "skipped" else FAILED
            yield Found(case.get("name", ""), note=f"{outcome.tag}: {outcome.get('message', '')[:200]}", state=state)
    yield Found("passed", outcomes.count(None), "tests", f"of {len(outcomes)}; pytest ended with {int(code)}")
    if not outcomes:
        yield Found("tests", note="none were found, see tests.log", state=FAILED)


def _cases(report: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(report).iter("testcase"))
