"""The figures show what the rows say, however many there are."""

from benchmarks import draw_street
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


def test_a_street_shows_settings_in_the_order_of_their_error_and_none_that_lacks_a_row(tmp_path):
    both = ("supervised", "default terms, bin relation")
    errors = {"16 beams": (0.24, 0.21), "1 beam": (0.74, 0.47), "4 beams": (0.35,)}
    rows = [
        {"setting": setting, "name": name, "lidar_abs_rel_mean": error, "lidar_abs_rel_std": None}
        for setting, found in errors.items()
        for name, error in zip(both, found, strict=False)
    ]
    shown = draw_street.pairs([*rows, rows[0] | {"name": "default terms"}])
    assert list(shown) == ["1 beam", "16 beams"]
    assert shown["1 beam"] == {both[0]: (0.74, 0.0), both[1]: (0.47, 0.0)}
    draw_street.draw(rows, tmp_path / "street.png")
    assert (tmp_path / "street.png").read_bytes()[:4] == b"\x89PNG"
