import numpy as np
import pytest

from data_cache.errors import SourceError
from data_cache.sources.recordings.cameras import calibrated
from data_cache.sources.recordings.decoding.messages import CalibrationMessage

K = (100.0, 0.0, 79.5, 0.0, 110.0, 44.5, 0.0, 0.0, 1.0)


def message(model="plumb_bob", D=(), *, K=K, cropped=False) -> CalibrationMessage:
    return CalibrationMessage("optical", 160, 90, model, D, K, (), cropped)


@pytest.mark.parametrize(
    ("model", "D", "expected"),
    [
        ("plumb_bob", (), None),
        ("", (), None),
        ("plumb_bob", (0.0,) * 5, None),
        ("rational_polynomial", (0.0,) * 8, None),
        ("plumb_bob", (-0.1, 0.01, 0.001, 0.002, 0.0), ("plumb_bob", (-0.1, 0.01, 0.001, 0.002, 0.0))),
        ("plumb_bob", (-0.1, 0.01, 0.0, 0.0), ("plumb_bob", (-0.1, 0.01, 0.0, 0.0))),
        ("plumb_bob", (-0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), ("plumb_bob", (-0.1, 0.01, 0.0, 0.0, 0.0))),
        ("rational_polynomial", (0.1,) * 8, ("rational", (0.1,) * 8)),
        ("rational_polynomial", (*(0.1,) * 8, *(0.0,) * 6), ("rational", (0.1,) * 8)),
        ("equidistant", (0.01, 0.0, 0.0, 0.0), ("fisheye", (0.01, 0.0, 0.0, 0.0))),
        ("equidistant", (0.0,) * 4, ("fisheye", (0.0,) * 4)),
        ("kannala_brandt", (0.01, 0.0, 0.0, 0.0), ("fisheye", (0.01, 0.0, 0.0, 0.0))),
    ],
)
def test_distortion_models_of_ros_and_foxglove(model, D, expected):
    camera, lens = calibrated("front", message(model, D), "/info", is_rectified=False)
    assert (lens and (lens.model, lens.coefficients)) == expected
    np.testing.assert_array_equal(camera.K_px, [[100, 0, 80], [0, 110, 45], [0, 0, 1]])


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (message("plumb_bob", (0.1,) * 8), "expected 4 or 5 coefficients, found 8: it is rational_polynomial"),
        (message("rational_polynomial", (0.1,) * 12), "rational: expected 8 finite coefficients"),
        (message("fisheye62", (0.1,) * 8), "unknown distortion model 'fisheye62'"),
        (message(K=(0.0,) * 9), "expected intrinsics K"),
        (message(K=(-1.0, *K[1:])), "with fx, fy > 0"),
        (message(cropped=True), "expected whole images, found binning or a region of interest"),
        (message("plumb_bob", (float("nan"),) * 5), "finite coefficients"),
    ],
)
def test_calibrations_that_cannot_be_used_are_named(broken, text):
    with pytest.raises(SourceError, match=f"^/info: .*{text}"):
        calibrated("front", broken, "/info", is_rectified=False)
