import base64
import hashlib
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest

from pipeline.viewers import cloud_page as cloud_view
from pipeline.viewers.cloud_page import POINT_LIMIT, cloud_page, cloud_section, script_source

POINTS_M = np.array([[3.0, 6.0, 0.5], [-80.0, 0.0, 2.0]], np.float32)
COLOURS = np.array([[10, 200, 30], [255, 0, 128]], np.uint8)


def shown(html: str) -> tuple[np.ndarray, np.ndarray]:
    """Points in metres and colours, as the script reads them."""
    (unit,) = re.findall(r'data-metres-per-unit="([^"]+)"', html)
    points, colours = (
        base64.b64decode(re.findall(rf'<script type="text/plain" data-{name}>([^<]*)</script>', html)[0])
        for name in ("points", "colours")
    )
    places = np.frombuffer(points, "<i2").reshape(-1, 3) * float(unit)
    return places, np.frombuffer(colours, np.uint8).reshape(-1, 3)


def test_points_are_within_two_millimetres_at_eighty_metres():
    places, colours = shown(cloud_section(POINTS_M, COLOURS))
    np.testing.assert_allclose(places, POINTS_M, atol=80 / 32767 / 2 + 1e-6)
    np.testing.assert_array_equal(colours, COLOURS)


def test_a_page_of_a_million_points_stays_small_and_shows_a_part_of_them():
    rng = np.random.default_rng(0)
    points_m = rng.normal(0, 20, (1_000_000, 3)).astype(np.float32)
    colours = np.arange(1_000_000)[:, None].repeat(3, 1).astype(np.uint8)
    page = cloud_page(points_m, colours, "many")
    assert len(page) < 1.6e6
    places, rgb = shown(page)
    assert len(places) == len(rgb) == POINT_LIMIT
    assert "1,000,000 points, 120,000 of them shown" in page
    lookup = {tuple(np.round(point, 1)) for point in points_m[:200_000]}
    assert np.mean([tuple(np.round(place, 1).astype(np.float32)) in lookup for place in places[:2000]]) > 0.5


def test_a_page_loads_nothing_and_lets_only_the_viewer_run():
    page = cloud_page(POINTS_M, COLOURS, '<b>"a/0"</b>')
    assert "<b>" not in page
    assert not re.findall(r"(?:src|href)\s*=|https?:|@import|url\(", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert script_source() == f"'sha256-{digest}'"
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', unescape(page))
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_no_points_are_no_reason_to_fail():
    places, _ = shown(cloud_section(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)))
    assert len(places) == 0


@pytest.mark.skipif(shutil.which("node") is None, reason="node looks at the script's syntax")
def test_the_script_parses():
    script = cloud_view.TEMPLATES / "cloud_viewer.js"
    subprocess.run(["node", "--check", script], check=True, capture_output=True)
