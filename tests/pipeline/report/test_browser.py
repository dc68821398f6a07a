"""The report in a real headless Chromium: what people see, and what it says at a pixel."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import chromium
from support.reports import CAMERAS, HOSTILE, PROVENANCE, REPORT, WITHOUT_LIDAR, pictures

from pipeline.report.one_run import write_report
from pipeline.report.two_runs import write_comparison
from stages.evaluation.results import Evaluation
from stages.inference.colours import colour_depth, depth_scale, error_colours
from stages.inference.point_cloud import PointCloud

SIZE = (48, 80)
SCRIPT = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


def slanted(frame_id="drive/07", **changes):
    """Depth of its own at every pixel: the student says 2 + view + row / 5 + column / 10 m, the teacher twice that.

    One LiDAR return per view, in row 10 and column 20, a fifth nearer than what the student says there.
    """
    view, row, column = np.meshgrid(range(4), range(SIZE[0]), range(SIZE[1]), indexing="ij")
    student_m = (2 + view + row / 5 + column / 10).astype(np.float32)
    lidar_m = np.zeros_like(student_m)
    lidar_m[:, 10, 20] = student_m[:, 10, 20] / 1.25
    made = pictures(frame_id, student_depth_m=student_m, teacher_depth_m=2 * student_m, lidar_depth_m=lidar_m)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def browser():
    """One for all tests of this file."""
    try:
        path = chromium.find()
    except chromium.NoBrowserError as error:
        pytest.skip(str(error))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=list(chromium.OPTIONS), env=dict(chromium.environment(path).items())
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Opens a page in a context of its own; whatever it logs or asks for ends the test."""
    contexts, troubles = [], []

    def opened(path: Path, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        # A screenshot of a canvas makes its driver complain of a stall.
        page.on("console", lambda message: "GL Driver Message" in message.text or troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """A report of the worst and the median of three frames; in the median the student sees all half as far again."""
    folder = tmp_path_factory.mktemp("report") / "run" / "eval"
    farther_m = slanted().student_depth_m * np.float32(1.5)
    median = slanted("drive/08", view_valid=(True, True, False, True), student_depth_m=farther_m, rank=2, ranked=3)
    return write_report(folder, Evaluation(REPORT, (slanted(rank=1, ranked=3), median)), PROVENANCE)


def all_drawn(page) -> int:
    """Brings every frame into view, that at the top of the page too; how many pictures below it were drawn."""
    for frame in page.locator(".frame").all():
        frame.scroll_into_view_if_needed()
        page.wait_for_function(
            "frame => [...frame.querySelectorAll('canvas')].every(canvas => canvas.dataset.drawn)",
            arg=frame.element_handle(),
        )
    return page.locator("#frames canvas[data-drawn]").count()


def point(page, camera: str, kind: str, row: int, column: int, frame=0):
    """The middle of a pixel of a picture, on the screen."""
    canvas = page.locator("#frames .frame").nth(frame).locator(f".view[data-camera='{camera}'] canvas{kind}")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return box["x"] + (column + 0.5) / SIZE[1] * box["width"], box["y"] + (row + 0.5) / SIZE[0] * box["height"]


def said(page) -> dict[str, str]:
    """What the line of values says, by name."""
    first, place, *values = page.locator(".readout:visible").inner_text().split(" · ")
    return {"camera": first, "place": place, **dict(value.split(" ", 1) for value in values)}


def metres(text: str) -> float:
    return float(text.removesuffix(" m"))


def test_it_loads_with_its_tables_and_pictures_and_asks_for_nothing(visit, html):
    page = visit(html)
    assert page.title() == "3 frames of the synthetic street, validation drives"
    headings = page.locator("main h2").all_inner_texts()
    assert headings[:4] == ["Results", "Per camera", "By distance", "Student and teacher"]
    assert page.locator("#per-camera tbody th").all_inner_texts() == [*CAMERAS, "mean of cameras"]
    assert page.locator("#results tbody tr").first.locator("td").first.inner_text() == "100.000"
    assert [link.get_attribute("href") for link in page.locator("nav a").all()] == [
        f"#{section.get_attribute('id')}" for section in page.locator("main > section").all()
    ]
    assert all_drawn(page) == 4 * 4 + 3 * 4
    images = page.locator("#frames .view img")
    assert images.evaluate_all("all => all.every(image => image.naturalWidth > 0)")
    assert images.count() == 7
    assert page.locator("#frames").get_by_text("no image from back").count() == 1


def test_pictures_have_the_colours_of_the_scale(visit, html):
    page = visit(html)
    all_drawn(page)
    pixel = "(canvas) => [...canvas.getContext('2d').getImageData(30, 5, 1, 1).data]"
    scale = depth_scale(REPORT.range_m)
    for name, factor in (("student", 1), ("teacher", 2)):
        depth_m = np.array([[factor * (2 + 2 + 5 / 5 + 30 / 10)]])
        canvas = page.locator(f".view[data-camera='back'] canvas[data-of={name}][data-kind=depth]").first
        *rgb, alpha = canvas.evaluate(pixel)
        np.testing.assert_allclose(rgb, colour_depth(depth_m, scale)[0, 0].astype(int), atol=3)
        assert alpha == 255


def test_hover_gives_the_metres_at_a_pixel(visit, html):
    page = visit(html)
    all_drawn(page)
    page.mouse.move(*point(page, "back", "[data-of=student][data-kind=depth]", 30, 61))
    values = said(page)
    assert (values["camera"], values["place"]) == ("back", "x 61, y 30")
    assert metres(values["Student"]) == pytest.approx(2 + 2 + 30 / 5 + 61 / 10, rel=0.004)  # one decimal beyond 10 m
    assert metres(values["Teacher"]) == pytest.approx(2 * (2 + 2 + 30 / 5 + 61 / 10), rel=0.004)
    assert (values["LiDAR"], values["Error"]) == ("–", "–")  # noqa: RUF001
    page.mouse.move(*point(page, "left", "[data-of=student][data-kind=depth]", 30, 61, frame=1))
    assert metres(said(page)["Student"]) == pytest.approx(1.5 * (2 + 3 + 30 / 5 + 61 / 10), rel=0.004)
    page.mouse.move(*point(page, "left", "[data-kind=error]", 11, 22))  # two pixels from the return
    values = said(page)
    lidar, away = values["LiDAR"].split(", ")
    assert (metres(lidar), away) == (pytest.approx((2 + 3 + 2 + 2) / 1.25, rel=0.002), "2 px away")
    assert metres(values["Student"]) == pytest.approx(2 + 3 + 11 / 5 + 22 / 10, rel=0.002)
    assert float(values["Error"].removesuffix(" %")) == pytest.approx(25, abs=0.3)
    assert page.locator(".view.cursor").count() == 1
    tag = page.locator(".view.cursor .picture", has=page.locator("canvas[data-of=teacher]")).locator(".tag")
    assert tag.inner_text() == f"Teacher {values['Teacher']}"


def test_the_cursor_follows_the_keys(visit, html):
    page = visit(html)
    all_drawn(page)
    page.locator("#frames .view[data-camera='front']").first.focus()
    page.keyboard.press("ArrowRight")
    start = [int(number) for number in re.findall(r"\d+", said(page)["place"])]
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    column, row = start[0] + 11, start[1] - 1
    assert said(page)["place"] == f"x {column}, y {row}"
    assert metres(said(page)["Student"]) == pytest.approx(2 + row / 5 + column / 10, rel=0.004)
    for _ in range(9):
        page.keyboard.press("Shift+ArrowLeft")
    assert said(page)["place"] == f"x 0, y {row}"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.camera") == CAMERAS[1]
    assert said(page)["camera"] == CAMERAS[1]
    page.keyboard.press("Escape")
    assert page.locator(".readout:visible").count() == 0


@pytest.mark.parametrize("report", [REPORT, WITHOUT_LIDAR])
def test_it_fits_a_phone_and_answers_to_a_tap(visit, tmp_path, report):
    nothing = np.zeros((4, *SIZE), np.float32)
    blind = {"lidar_depth_m": nothing, "teacher_on_lidar": (False,) * 4} if report is WITHOUT_LIDAR else {}
    sure = np.full((4, *SIZE), 0.125, np.float32)
    path = write_report(tmp_path / "eval", Evaluation(report, (replace(slanted(), sigma=sure, **blind),)), PROVENANCE)
    page = visit(path, 360, 740, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 23)"
    all_drawn(page)
    page.touchscreen.tap(*point(page, "left", "[data-of=student][data-kind=depth]", 7, 5))
    values = said(page)
    assert metres(values["Student"]) == pytest.approx(2 + 3 + int(values["place"].split()[-1]) / 5 + 0.5, rel=0.05)
    assert values["Sigma"] == "±12.5 %"
    (*rgb, _) = page.locator("canvas[data-kind=sigma]").first.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(30, 5, 1, 1).data]"
    )
    assert rgb == error_colours(256)[round((0.125 / 0.5 + 1) / 2 * 255)].tolist()
    assert ("LiDAR" in values) == (report is REPORT)
    assert page.get_by_text("no LiDAR", exact=True).count() == 0
    tabs = page.locator("[tabindex='0']").count()
    assert tabs >= 4 + page.locator("table").count()


def test_texts_of_strangers_run_nowhere(visit, tmp_path):
    report = replace(REPORT, dataset=SCRIPT, quarantined={SCRIPT: HOSTILE})
    cameras = (SCRIPT, *CAMERAS[1:])
    evaluation = Evaluation(report, (slanted(SCRIPT, camera_names=cameras),))
    page = visit(write_report(tmp_path / "eval", evaluation, {SCRIPT: SCRIPT}))
    all_drawn(page)
    assert page.title() == f"3 frames of {SCRIPT}, validation drives"
    assert page.locator("h3").first.inner_text().startswith(SCRIPT)


def test_the_first_screen_is_one_frame_then_four_numbers(visit, html):
    """On a screen of 1280 x 900; the pictures are drawn without a scroll, and say their metres."""
    page = visit(html)
    page.wait_for_function("() => [...document.querySelectorAll('.lead canvas')].every(c => c.dataset.drawn)")
    lead, cards = page.locator(".lead"), page.locator(".headlines > div")
    title, pictures_box = page.locator("h1").bounding_box(), lead.bounding_box()
    boxes = [card.bounding_box() for card in cards.all()]
    assert len(boxes) == 4
    assert title["y"] < pictures_box["y"] < boxes[0]["y"] == boxes[3]["y"]
    assert max(box["y"] + box["height"] for box in boxes) < 900
    assert lead.locator(".view").first.locator(".tag").all_inner_texts() == ["Camera", "Student", "Error"]
    assert lead.locator("h2").inner_text() == "drive/08 median of 3 frames, AbsRel 0.125"
    canvas = lead.locator("[data-camera='left'] canvas[data-of=student][data-kind=depth]").bounding_box()
    page.mouse.move(canvas["x"] + 61.5 / 80 * canvas["width"], canvas["y"] + 30.5 / 48 * canvas["height"])
    assert metres(said(page)["Student"]) == pytest.approx(1.5 * (2 + 3 + 30 / 5 + 61 / 10), rel=0.004)
    assert [card.bounding_box() for card in cards.all()] == boxes  # the line of values moves nothing


def test_two_runs_stand_beside_each_other(visit, html, tmp_path):
    """The other student is a tenth farther everywhere, and its report shows one of the two frames, and a third."""
    farther = slanted(student_depth_m=slanted().student_depth_m * np.float32(1.1))
    evaluation = Evaluation(REPORT, (farther, slanted("drive/09")))
    write_report(tmp_path / "other" / "eval", evaluation, PROVENANCE)
    page = visit(write_comparison(html.parents[1], tmp_path / "other", tmp_path / "out.html"))
    assert page.title() == "other against run: 3 frames of the synthetic street, validation drives"
    assert page.locator("h3").count() == 1
    assert all_drawn(page) == 4 * 7
    page.mouse.move(*point(page, "back", "[data-of=second][data-kind=depth]", 30, 61))
    line = page.locator(".readout:visible").inner_text()
    values = dict(re.findall(r"· ([a-z, ]+) ([-+\d.]+) (?:m|%)", line))
    assert float(values["run"]) == pytest.approx(16.1, rel=0.004)
    assert float(values["other"]) == pytest.approx(17.71, rel=0.004)
    assert float(values["other against run"]) == pytest.approx(10, abs=0.3)


def test_what_was_never_looked_at_is_drawn_before_it_is_printed(visit, html):
    page = visit(html, height=300)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.frame canvas')].every(canvas => canvas.dataset.drawn)"
    )


def test_the_points_of_a_frame_are_drawn_and_can_be_turned(visit, tmp_path):
    """A wall of four colours, 8 m ahead, 8 m wide and 4 m high: each quarter is seen where it lies, until it turns."""
    y_m, z_m = (side.ravel() for side in np.meshgrid(np.linspace(-4, 4, 161), np.linspace(0, 4, 81)))
    points_m = np.stack([np.full_like(y_m, 8), y_m, z_m], axis=1).astype(np.float32)
    left, high = y_m > 0, z_m > 2
    colours = {"red": (250, 40, 40), "green": (40, 250, 40), "blue": (40, 40, 250), "yellow": (250, 250, 40)}
    rgb = np.select(
        [c[:, None] for c in (left & high, ~left & high, left & ~high)],
        [np.array(colours[name]) for name in ("red", "green", "blue")],
        np.array(colours["yellow"]),
    ).astype(np.uint8)
    cloud = PointCloud(points_m, rgb)
    page = visit(write_report(tmp_path / "run/eval", Evaluation(REPORT), PROVENANCE, ("drive/07", cloud)))
    viewer = page.locator("section.cloud canvas")
    assert page.locator("section.cloud [data-no-webgl]").is_hidden(), f"no WebGL; {chromium.REMEDY}"
    viewer.scroll_into_view_if_needed()

    def middles(seen):
        """Mean row and column of the pixels of each colour."""
        places = {name: np.argwhere(np.abs(seen - np.array(one)).max(axis=2) < 8) for name, one in colours.items()}
        assert min(map(len, places.values())) > 100
        return {name: place.mean(axis=0) for name, place in places.items()}

    first = drawn(viewer)
    red, green, blue, yellow = middles(first).values()
    assert max(red[0], green[0]) < min(blue[0], yellow[0])  # row: high above low
    assert max(red[1], blue[1]) < min(green[1], yellow[1])  # column: left before right
    box = viewer.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    dragged = drawn(viewer)
    assert all(np.abs(after - before).max() > 5 for after, before in zip(middles(dragged).values(), (red, green, blue, yellow), strict=True))  # fmt: skip # noqa: E501
    viewer.focus()
    page.keyboard.press("Home")
    np.testing.assert_array_equal(drawn(viewer), first)
    page.keyboard.press("ArrowLeft")
    assert (drawn(viewer) != first).any()


def drawn(viewer) -> np.ndarray:
    """The pixels of a canvas after two frames of the browser, without its round corners, (H, W, 3)."""
    viewer.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.asarray(Image.open(io.BytesIO(viewer.screenshot())).convert("RGB"))[8:-8, 8:-8].astype(int)
