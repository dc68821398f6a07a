"""The programs of `examples/deploy`: the Python one as a module, the C++ one built, and a file for both to run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx
from onnx import TensorProto, helper

from stages.deploy.export import with_metadata
from support.repository import REPOSITORY

EXAMPLES = REPOSITORY / "examples/deploy"
CAMERAS = ("front", "right", "left")
SIZE = (32, 64)
ABOUT = {
    "format": "surround-export/1",
    "input_size": SIZE,
    "cameras": CAMERAS,
    "batch": 1,
    "views_per_call": 3,
    "precision": "fp32",
}


def python_example() -> ModuleType:
    """`depth.py`, imported by its path: it belongs to no package."""
    spec = importlib.util.spec_from_file_location("deploy_example", EXAMPLES / "depth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def missing_for_cpp() -> str:
    """What this machine lacks to build `depth.cpp`, in words; empty if nothing."""
    gone = [program for program in ("cmake", "c++") if shutil.which(program) is None]
    if gone:
        return f"{' and '.join(gone)} not installed"
    places = [Path("/usr/include/onnxruntime"), Path("/usr/local/include")]
    if root := os.environ.get("ONNXRUNTIME_ROOT"):
        places += [Path(root) / "include", Path(root) / "include/onnxruntime"]
    if not any((place / "onnxruntime_cxx_api.h").is_file() for place in places):
        return "no headers of onnxruntime: install libonnxruntime-dev, or name its folder in ONNXRUNTIME_ROOT"
    return ""


def built_cpp(folder: Path) -> Path:
    """The C++ program, built in this folder; warnings are errors."""
    command = ("cmake", "-S", EXAMPLES, "-B", folder, "-DCMAKE_CXX_FLAGS=-Werror")
    for step in (command, ("cmake", "--build", folder)):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "depth"


def write_red_graph(path: Path, **changes: object) -> Path:
    """An ONNX file with a student's face, whose depth is focal_px x red / 255: metres that can be worked by hand."""
    about = {**ABOUT, **changes}
    V, (H, W) = about["views_per_call"], SIZE
    nodes = [
        helper.make_node("Split", ["image"], ["red", "green", "blue"], axis=2, num_outputs=3),
        helper.make_node("Cast", ["red"], ["red_float"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["red_float", "axis_2"], ["levels"]),
        helper.make_node("Div", ["levels", "largest"], ["shares"]),
        helper.make_node("Unsqueeze", ["focal_px", "axes_23"], ["focal"]),
        helper.make_node("Mul", ["shares", "focal"], ["depth_m"]),
    ]
    constants = [
        helper.make_tensor("axis_2", TensorProto.INT64, [1], [2]),
        helper.make_tensor("axes_23", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("largest", TensorProto.FLOAT, [], [255.0]),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, V, 3, H, W]),
        helper.make_tensor_value_info("focal_px", TensorProto.FLOAT, [1, V]),
    ]
    output = helper.make_tensor_value_info("depth_m", TensorProto.FLOAT, [1, V, H, W])
    graph = helper.make_graph(nodes, "red", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(with_metadata(model.SerializeToString(), json.loads(json.dumps(about))))
    return path
