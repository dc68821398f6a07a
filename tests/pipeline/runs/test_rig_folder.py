"""`surround rig export`; what it writes is tested where it is written (data_cache/sources/rig_folder)."""

from pathlib import Path

import pytest
from PIL import Image
from support.data_sets.rig_folder import van
from support.surround import surround

from data_cache.sources.rig_folder.source import RigFolderSource


@pytest.fixture
def folder(tmp_path) -> Path:
    return van(tmp_path)


def test_the_command_exports_what_the_recipe_selects(tmp_path):
    chosen = [
        "--set",
        'data.train=["drive-00"]',
        "--set",
        'data.test=["drive-50[2:3]"]',
        "--set",
        "data.limit_frames=1",
    ]
    code, text = surround("rig", "export", "demo", *chosen, "--out", tmp_path / "rig")
    said = f"rig export: 2 frames in {tmp_path / 'rig'}, 0 images copied, 12 written as PNG\n"
    assert (code, said in text) == (0, True), text
    assert dict(RigFolderSource(tmp_path / "rig").drives) == {"drive-00": ("drive-00/0",), "drive-50": ("drive-50/2",)}
    code, text = surround("rig", "export", "demo", "--out", tmp_path / "rig")
    assert (code, "found rig.json in it" in text) == (2, True)


def test_the_command_lists_frames_that_were_left_out_with_exit_3(tmp_path, folder):
    (folder / "lidar/2.npy").write_bytes(b"")
    Image.new("RGB", (8, 6)).save(folder / "images/1.png")
    arguments = ["--data", folder, "--set", 'data.train=["morning[:1]"]', "--set", 'data.test=["morning[1:]"]']
    code, text = surround("rig", "export", "rig", *arguments, "--out", tmp_path / "out")
    assert (code, "2 frames in" in text, "m/2: " in text) == (3, True, True), text


def test_an_image_that_leads_elsewhere_is_left_out_with_exit_3(tmp_path, folder):
    (folder / "images/1.png").unlink()
    (folder / "images/1.png").symlink_to(folder.parent / "secret.png")
    arguments = ["--data", folder, "--set", 'data.train=["morning[:1]"]', "--set", 'data.test=["morning[1:]"]']
    code, text = surround("rig", "export", "rig", *arguments, "--out", tmp_path / "out")
    assert (code, "2 frames in" in text, "m/1: " in text, "leads to" in text) == (3, True, True, True), text
