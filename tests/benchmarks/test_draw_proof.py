"""The figure shows what the rows say, however many there are."""

from benchmarks.draw_proof import Point, draw, lines


def row(name: str, drives: int | None, gain: float | None, std: float | None, seeds: int = 3, share: float = 1.0):
    entry = {"name": name, "lidar_share": share, "seeds": list(range(seeds)), "gain_pct": gain, "gain_std": std}
    return entry | ({"lidar_drives": drives} if drives else {})


ROWS = [
    row("supervised", 3, None, None),
    row("motion", 12, 2.0, 0.5),
    row("motion", 3, 4.0, 1.0),
    row("motion", 3, 9.0, 1.0, share=0.1),
    row("teacher", 3, -1.0, None, seeds=1),
    row("motion", None, 7.0, 1.0),
]


def test_a_line_for_each_kind_of_student_by_growing_number_of_drives():
    assert lines(ROWS) == {"motion": [Point(3, 4.0, 1.0, 3), Point(12, 2.0, 0.5, 3)], "teacher": [Point(3, -1.0, 0, 1)]}


def test_one_row_and_many_rows_make_a_picture(tmp_path):
    for count in (1, 3, len(ROWS)):
        draw(ROWS[:count], tmp_path / f"{count}.png")
        assert (tmp_path / f"{count}.png").read_bytes()[:4] == b"\x89PNG"
