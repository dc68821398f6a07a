"""A report in which every number differs from every other, its pictures, and its page as a test reads it."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from stages.evaluation.metrics import DepthErrors
from stages.evaluation.ranking import FrameErrors
from stages.evaluation.results import Consistency, EvaluateReport, FramePictures, Latency, StudentScores, TeacherScores
from stages.evaluation.scores import Scores

HOSTILE = "<script>alert('x')</script> & \"a|b\""
CAMERAS = ("front", "right & <i>aft</i>", "back", "left")
SIDES = (48, 80)
PROVENANCE = {"versions": {"torch": "2.13.0", "numpy": "2.4"}, "git_commit": "ab07491", "machine": None}


def errors(start):
    """Seven values and two counts that differ from each other and from those of every other start."""
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
    values = {name: start + i / 1000 for i, name in enumerate(names)}
    return DepthErrors(**values, images=10 * start, pixels=1000 * start)


def scores(start):
    per_camera = {name: errors(start + 1 + i) for i, name in enumerate(CAMERAS)}
    return Scores(errors(start), per_camera, {"0-20": errors(start + 5), "20-40": errors(start + 6)})


REPORT = EvaluateReport(
    dataset="synthetic",
    split="val",
    protocol="surrounddepth",
    flip=False,
    range_m=(0.1, 80.0),
    frames=3,
    images=11,
    valid_pixels=1234,
    student=StudentScores(scores(100), scores(200), scores(300)),
    teacher=TeacherScores(scores(400)),
    consistency=Consistency(
        overlap_abs_rel=0.0625,
        pairs={"front-back": 0.0312, "back-left": 0.0938},
        overlap_with_gross=0.156,
        pairs_with_gross={"front-back": 0.123, "back-left": 0.189},
        overlap_share=0.75,
        pairs_share={"front-back": 0.872, "back-left": 0.628},
    ),
    latency=Latency(12.5, 15.25, 100.0, 140.0, 8.0, "bfloat16", "cpu", (96, 160), (392, 644), 4),
    quarantined={HOSTILE: "image <missing>"},
)


def pictures(frame_id="drive/07", **changes):
    """View i is plainly coloured, and i + 2 metres away for the student, 20 (i + 1) for the teacher."""
    ones = np.ones((4, *SIDES), np.float32)
    metres = np.arange(4, dtype=np.float32)[:, None, None]
    colours = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200)], np.uint8)
    lidar_m = np.zeros_like(ones)
    lidar_m[:, 10, 20] = 8
    made = FramePictures(
        frame_id,
        CAMERAS,
        (True, True, True, True),
        np.broadcast_to(colours[:, None, None], (4, *SIDES, 3)).copy(),
        lidar_m,
        ones * 20 * (metres + 1),
        ones * (metres + 2),
        (True, True, True, True),
        FrameErrors(0.125, 0.25),
    )
    return replace(made, **changes)


class Page(HTMLParser):
    """What a test asks of a page: its tags, its texts, its pictures; those above the sections stand apart.

    Attributes:
        images, lead_images: attributes of the `<img>` tags of the sections, and of the head of the page.
        canvases, lead_canvases: labels of the `<canvas>` tags, in the same way.
    """

    def __init__(self, path):
        super().__init__()
        self.raw = path.read_text()
        self.tags, self.texts, self.headings = [], [], []
        self.lead_images, self.lead_canvases = self.images, self.canvases = [], []
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "main":
            self.images, self.canvases = [], []
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "canvas":
            self.canvases.append(dict(attrs).get("aria-label", ""))

    def handle_data(self, data):
        self.texts.append(data.strip())
        if self.tags and self.tags[-1][0] == "h2" and "main" in dict(self.tags) and data.strip():
            self.headings.append(data.strip())

    def rgb(self, alt):
        (image,) = [image for image in self.images if image["alt"] == alt]
        content = base64.b64decode(image["src"].removeprefix("data:image/webp;base64,"))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


WITHOUT_LIDAR = replace(REPORT, images=0, valid_pixels=0, student=None, teacher=None, disagreement=scores(500))
