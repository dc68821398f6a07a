"""The programs of `examples/deploy`, on a file whose metres can be worked by hand, and the images of `docker`.

That the Python one says what `surround predict` says of a real student is tested beside the export itself
(tests/pipeline/runs/test_export.py).
"""

import ast
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.deploy_examples import EXAMPLES, SIZE, built_cpp, missing_for_cpp, python_example, write_red_graph
from support.repository import REPOSITORY

from data_cache.frames.images import load_rgb
from stages.compute.resize import resize_rgb

depth = python_example()
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
SIZES = [(48, 80), (32, 64), (97, 131), (20, 40), (33, 500)]
"""(H, W) of images: larger than the student's input, equal, unlike in shape, smaller."""


def run_python(*arguments: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, EXAMPLES / "depth.py", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def run_in_process(capsys, *arguments: object) -> tuple[int, str]:
    """The same without a new process."""
    try:
        depth.main([*map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else 1
        print(stop.code)
    return code, "".join(capsys.readouterr())


def run_program(program: Path, *arguments: object) -> tuple[int, str]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def cpp(tmp_path_factory):
    """Runs the C++ program."""
    if missing := missing_for_cpp():
        pytest.skip(f"C++ example: {missing}")
    return partial(run_program, built_cpp(tmp_path_factory.mktemp("build")))


def write_noise(folder: Path, suffix: str = ".ppm") -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}{suffix}" for i in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return paths


def test_the_python_program_imports_nothing_of_this_project():
    tree = ast.parse((EXAMPLES / "depth.py").read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in named} - sys.stdlib_module_names
    assert foreign == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("suffix", [".ppm", ".jpg"])
def test_images_are_stretched_as_for_the_student_to_two_grey_levels(tmp_path, suffix):
    """The same filter, in weights of 16 bits there and of 22 bits here.

    Both passes round, each to the other side at worst: one level in the first, up to 1.3 times as much after the
    weights of the second (the sum of their absolute values), and its own rounding. A JPEG is decoded at the same
    fraction: at 1 for (97, 131), at 1/8 for (480, 800).
    """
    paths = write_noise(tmp_path, suffix)
    paths.append(tmp_path / f"large{suffix}")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (480, 800, 3), dtype=np.uint8)).save(paths[-1])
    for path in paths:
        ours = resize_rgb(load_rgb(path, at_least=SIZE), SIZE)
        theirs, native = depth.stretched(path, SIZE)
        assert native == load_rgb(path).shape[:2]
        assert np.abs(theirs.astype(int) - ours).max() <= 2


@pytest.mark.parametrize("views", [3, 1])
def test_metres_by_hand(tmp_path, views):
    """Red 51 is a fifth; 50 px at 80 columns are 40 px at 64, so 8 m. The camera on the right is missing."""
    model = write_red_graph(tmp_path / "s.onnx", views_per_call=views)
    Image.new("RGB", (80, 48), (51, 7, 9)).save(tmp_path / "f.png")
    half = np.zeros((64, 128, 3), np.uint8)
    half[:, 64:, 0] = 255
    Image.fromarray(half).save(tmp_path / "l.png")
    code, text = run_python(
        model, "--out", tmp_path / "out", f"front=50:{tmp_path / 'f.png'}", f"left=20:{tmp_path / 'l.png'}"
    )
    assert (code, re.sub(r"[\d.]+ ms", "T", text)) == (0, f"ready\ndepth of 2 images in T: {tmp_path / 'out'}\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"front.npy", "left.npy"}
    front, left = (np.load(tmp_path / f"out/{name}.npy") for name in ("front", "left"))
    assert (front.dtype, front.shape, left.shape) == (np.float32, (48, 80), (64, 128))
    np.testing.assert_allclose(front, 8, rtol=1e-6)
    np.testing.assert_allclose(left[:, [0, -1]], [[0, 10]] * 64, rtol=1e-6)  # 20 px at 128 columns


@pytest.mark.parametrize("views", [3, 1])
def test_the_cpp_program_says_the_same(tmp_path, cpp, capsys, views):
    """The stretch is the same to the bit, and so is the graph: what a compiler may still order in its own way is the
    interpolation in float64 before the one rounding to float32, the last two bits of which are left open.
    """
    int8 = {"int8_target": "cpu", "int8_right_on": "any CPU"}  # is no reason to refuse it
    model = write_red_graph(tmp_path / "s.onnx", views_per_call=views, **int8)
    for i, path in enumerate(write_noise(tmp_path)):
        photos = [
            f"{('front', 'right', 'left')[i % 3]}=33.3:{path}",
            f"{('front', 'right', 'left')[(i + 1) % 3]}=7:{path}",
        ]
        for out, run in (("cpp", cpp), ("python", partial(run_in_process, capsys))):
            code, text = run(model, *photos, "--out", tmp_path / out / path.stem, "--repeat", 2)
            assert (code, "ready\ndepth of 2 images in" in text) == (0, True), text
        written = {file.name for file in (tmp_path / "cpp" / path.stem).iterdir()}
        assert written == {file.name for file in (tmp_path / "python" / path.stem).iterdir()}
        for name in written:
            found, expected = (np.load(tmp_path / out / path.stem / name) for out in ("cpp", "python"))
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=2**-22)


WRONG = [
    ({"format": "other/1"}, ("front=50:{image}",), "expected a file of `surround export`"),
    ({"batch": 2}, ("front=50:{image}",), "expected --batch 1 or dynamic, found 2 rigs per call"),
    (
        {"int8_target": "tensorrt", "int8_right_on": "TensorRT"},
        ("front=50:{image}",),
        "TensorRT, which this CPU is not; export with --int8 cpu",
    ),
    ({}, ("rear=50:{image}",), "rear"),
    ({}, ("front=0:{image}",), "expected NAME=FX:FILE"),
    ({}, ("front:{image}",), "expected NAME=FX:FILE"),
    ({}, ("front=50:{image}", "front=50:{image}"), "expected each camera once"),
    ({}, ("front=50:{folder}/none.ppm",), "none.ppm"),
    ({}, ("front=50:{folder}/cut.ppm",), "cut.ppm"),
]


@pytest.fixture
def wrong(tmp_path, request):
    """Arguments that are wrong, and what the error says."""
    changes, photos, message = request.param
    Image.new("RGB", (80, 48)).save(tmp_path / "a.ppm")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "a.ppm").read_bytes()[:-9])
    model = write_red_graph(tmp_path / "s.onnx", **changes)
    named = [photo.format(image=tmp_path / "a.ppm", folder=tmp_path) for photo in photos]
    return (model, "--out", tmp_path / "out", *named), message


@pytest.mark.parametrize("wrong", WRONG, indirect=True)
def test_what_cannot_be_used_is_one_error(wrong, capsys):
    code, text = run_in_process(capsys, *wrong[0])
    assert (code, text.count("Error: "), wrong[1] in text) == (1, 1, True), text


@pytest.mark.parametrize("wrong", WRONG, indirect=True)
def test_and_one_error_of_the_cpp_program(wrong, cpp):
    code, text = cpp(*wrong[0])
    assert (code, text.count("Error: "), wrong[1] in text) == (1, 1, True), text


def test_a_file_for_vnni_is_refused_where_the_cpu_does_not_say_that_it_has_it(monkeypatch):
    about = {"int8_target": "cpu-vnni", "int8_right_on": "CPUs with VNNI"}
    monkeypatch.setattr(depth, "cpu_flags", lambda: "flags : avx2 avx512_vnni")
    depth.require_right_here(about)
    monkeypatch.setattr(depth, "cpu_flags", lambda: "flags : avx2")
    with pytest.raises(depth.DeployError, match="right on CPUs with VNNI, which this CPU is not"):
        depth.require_right_here(about)
    depth.require_right_here({"int8_target": "cpu"})


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_copies_what_there_is(path):
    text = path.read_text().replace("\\\n", " ")
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    assert copied
    assert [name for names in copied for name in names if not (REPOSITORY / name).exists()] == []
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert not {name.split("/")[0] for names in copied for name in names} & set(ignored)
