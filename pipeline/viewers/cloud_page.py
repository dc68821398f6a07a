"""The point viewer for a browser: a section of a page that loads nothing, or a page of its own."""

import base64
import hashlib
import math
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import Float, UInt8

from data_cache.files import count_text
from stages.inference.point_cloud import PointCloud, thinned

TEMPLATES = Path(__file__).parent / "templates"
POINT_LIMIT = 120_000
"""Most points on a page: 1.4 MB of text. A larger cloud is shown by a fixed random choice."""
SEEN_STERADIANS = 6.0
"""Rough solid angle that the cameras of a rig see together; it says how large points must be to leave no gaps."""
_STEPS = 32767  # of an int16, to either side


def cloud_section(
    points_m: Float[np.ndarray, "N 3"],
    colours: UInt8[np.ndarray, "N 3"],
    label: str = "Point cloud",
    height: str = "min(70vh, 40rem)",
    *,
    with_script: bool = True,
) -> str:
    """A `<section>` with the point viewer and its points, and with the script unless the page brings it.

    It needs no styles of the page and no file. A page with a Content-Security-Policy must allow inline styles and, in
    `script-src`, `script_source()`. Coordinates are rounded to 1/32767 of the largest one, 2.4 mm at 80 m.

    Args:
        points_m: x forward, y left, z up from the vehicle, metres.
        colours: sRGB.
        label: what the cloud is, for people.
        height: of the canvas, in CSS.
    """
    shown = thinned(PointCloud(points_m.astype(np.float32), colours), POINT_LIMIT)
    count, shown_m = len(shown.points_m), shown.points_m
    unit_m = max(float(np.abs(shown_m).max(initial=0.0)), 1e-3) / _STEPS
    return _render(
        "cloud_section.html.j2",
        label=label,
        height=height,
        count=count_text(len(points_m), "point") + (f", {count:,} of them shown" if count < len(points_m) else ""),
        metres_per_unit=f"{unit_m:.9g}",
        radians_per_point=f"{math.sqrt(SEEN_STERADIANS / max(count, 1)):.4g}",
        points=_base64(np.round(shown_m / unit_m).astype("<i2")),
        colours=_base64(shown.rgb),
        script=viewer_script() if with_script else "",
    )


def cloud_page(points_m: Float[np.ndarray, "N 3"], colours: UInt8[np.ndarray, "N 3"], title: str) -> str:
    """A page of its own with one viewer."""
    section = cloud_section(points_m, colours, title, "calc(100vh - 5rem)")
    return _render("cloud_page.html.j2", title=title, section=section, script_source=script_source())


def script_source() -> str:
    """The source that a Content-Security-Policy must name in `script-src` for the viewer to run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(viewer_script().encode()).digest()).decode()}'"


@cache
def viewer_script() -> str:
    """The JavaScript of the viewer; placed outside a section, it serves the only section of the page."""
    return (TEMPLATES / "cloud_viewer.js").read_text(encoding="utf-8")


def _render(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
