import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.vehicle import rays

from data_cache.errors import FrameError
from data_cache.frames.undistort import Lens, distort, load_undistorted, pinhole_rows

BARREL = ("plumb_bob", (-0.3, 0.1, 0.002, -0.001, 0.01))
PINCUSHION = ("plumb_bob", (0.2, 0.05, 0.001, 0.002))
FISHEYE = ("fisheye", (0.02, -0.01, 0.003, -0.0005))


def lens(model, coefficients, focal_px=170.0, size=(192, 320), skew=0.0):
    rows = ((focal_px, skew, size[1] / 2 + 1.25), (0.0, focal_px * 1.01, size[0] / 2 - 0.75), (0.0, 0.0, 1.0))
    return Lens(model, coefficients, rows, size[1], size[0])


def one(made, x, y):
    return tuple(float(a[0]) for a in distort(made, np.array([x]), np.array([y])))


def test_a_ray_through_a_plumb_bob_lens_by_hand():
    """The ray (0.5, 0.25): r2 = 0.3125, radial = 1 + 0.03125 + 0.001953125 + 0; p1 and p2 each touch both axes."""
    made = lens("plumb_bob", (0.1, 0.02, 0.01, -0.02))
    x = 0.5 * 1.033203125 + 2 * 0.01 * 0.125 - 0.02 * (0.3125 + 0.5)
    y = 0.25 * 1.033203125 + 0.01 * (0.3125 + 0.125) - 2 * 0.02 * 0.125
    assert one(made, 0.5, 0.25) == pytest.approx((0.5028515625, 0.25767578125)) == (x, y)
    with_k3 = lens("plumb_bob", (0.1, 0.02, 0.01, -0.02, 2.0))  # adds 2 * 0.3125**3 to the radial factor
    assert one(with_k3, 0.5, 0.25) == pytest.approx((x + 0.030517578125, y + 0.0152587890625))


def test_a_ray_through_a_rational_lens_by_hand():
    """The ray (2, 0): r2 = 4, radial = (1 + 0.4 + 0.16 + 0.064) / (1 + 0.8 + 0.32 + 0.128); k3 stands after p2."""
    made = lens("rational", (0.1, 0.01, 0.0, 0.0, 0.001, 0.2, 0.02, 0.002))
    assert one(made, 2.0, 0.0) == pytest.approx((2 * 1.624 / 2.248, 0.0))


def test_a_ray_through_a_fisheye_by_hand():
    """45 degrees off axis, right and down as 3 : 4: theta = 0.7853982, theta_d = theta (1 + 0.0616850 - 0.0038050)."""
    made = lens("fisheye", (0.1, -0.01, 0.0, 0.0))
    assert one(made, 0.6, 0.8) == pytest.approx((0.6 * 0.830857, 0.8 * 0.830857), abs=1e-6)
    assert one(made, 0.0, 0.0) == (0.0, 0.0)


def test_an_undistorted_pixel_shows_what_lay_on_its_ray(tmp_path):
    """A fisheye of 50 px, centred at u = 100.

    Pinhole pixel 150 is centred at 150.5: x = 50.5 / 50 = 1.01, theta = 0.790373, photographed at
    u = 100 + 50 * 0.790373 = 139.52, that is 0.02 to the right of the centre of pixel 139.
    """
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    made = Lens("fisheye", (0.0,) * 4, ((50.0, 0.0, 100.0), (0.0, 50.0, 50.5), (0.0, 0.0, 1.0)), 200, 100)
    assert pinhole_rows(made) == made.K_rows
    rgb = load_undistorted(tmp_path / "a.png", made)
    assert rgb.shape == (100, 200, 3)
    assert rgb[50, 150].tolist() == [139] * 3
    assert rgb[50, 100].tolist() == [100] * 3


def scene(x, y):
    """A smooth picture of the directions x, y, one pattern per channel."""
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(2 * x * y + 1)], axis=-1)
    return (127.5 + 120 * waves).round().astype(np.uint8)


def expected(made, size=None):
    """The scene as the pinhole camera of the lens takes it."""
    height, width = size or (made.height_px, made.width_px)
    K = np.array(pinhole_rows(made))
    v, u = np.mgrid[0:height, 0:width] + 0.5
    y = (v * made.height_px / height - K[1, 2]) / K[1, 1]
    return scene((u * made.width_px / width - K[0, 2] - K[0, 1] * y) / K[0, 0], y)


mild = st.floats(-0.05, 0.05)


@settings(max_examples=10, deadline=None)
@given(
    st.one_of(
        st.tuples(
            st.just("plumb_bob"), st.tuples(st.floats(-0.15, 0.1), st.floats(0, 0.05), *[st.floats(-0.005, 0.005)] * 2)
        ),
        st.tuples(st.just("fisheye"), st.tuples(mild, st.floats(-0.01, 0.01), st.just(0.001), st.just(0.0))),
    )
)
def test_the_photograph_of_a_scene_is_undistorted_to_what_a_pinhole_camera_sees(tmp_path_factory, model):
    made = lens(*model, focal_px=120.0, size=(96, 160))
    path = tmp_path_factory.mktemp("lens") / "a.png"
    Image.fromarray(scene(*rays(made))).save(path)
    difference = load_undistorted(path, made).astype(int) - expected(made)
    assert np.abs(difference)[1:-1, 1:-1].max() <= 3


@pytest.mark.parametrize("model", [BARREL, PINCUSHION, FISHEYE], ids=["barrel", "pincushion", "fisheye"])
def test_a_smaller_decoded_image_is_undistorted_the_same(tmp_path, model):
    made = lens(*model)
    Image.fromarray(scene(*rays(made))).save(tmp_path / "a.jpg", quality=98)
    small = load_undistorted(tmp_path / "a.jpg", made, at_least=(90, 150))
    assert small.shape == (96, 160, 3)
    difference = small.astype(int) - expected(made, (96, 160))
    assert np.abs(difference)[2:-2, 2:-2].max() <= 8


def test_skew_belongs_to_the_photograph_and_to_the_pinhole(tmp_path):
    made = lens(*BARREL, skew=12.0)
    straight = lens(*BARREL)
    x, y = rays(straight)
    # A pixel (u, v) of the skewed photograph shows the ray that the straight one has at u - skew * y', y' distorted.
    v, u = np.mgrid[0:192, 0:320] + 0.5
    column = np.clip(u - 12.0 * (v - straight.K_rows[1][2]) / straight.K_rows[1][1] - 0.5, 0, 319)
    rows = np.arange(192)[:, None]
    Image.fromarray(scene(x, y)[rows, column.round().astype(int)]).save(tmp_path / "a.png")
    difference = load_undistorted(tmp_path / "a.png", made).astype(int) - expected(made)
    assert np.abs(difference)[20:-20, 20:-20].max() <= 8


def test_a_lens_that_bends_inwards_keeps_its_intrinsics():
    for model in (BARREL, FISHEYE):
        assert pinhole_rows(lens(*model)) == lens(*model).K_rows


def test_a_lens_that_bends_outwards_is_enlarged_as_little_as_fills_the_image():
    made = lens(*PINCUSHION)
    K, native = np.array(pinhole_rows(made)), np.array(made.K_rows)
    zoom = K[0, 0] / native[0, 0]
    np.testing.assert_allclose(K, native * [zoom, zoom, 1])
    assert zoom > 1.05

    def farthest_outside_px(zoom):
        u, v = np.meshgrid([0.0, 80, 160, 240, 320], [0.0, 48, 96, 144, 192])
        x, y = (u - native[0, 2]) / native[0, 0] / zoom, (v - native[1, 2]) / native[1, 1] / zoom
        x, y = distort(made, x, y)
        u, v = native[0, 0] * x + native[0, 2], native[1, 1] * y + native[1, 2]
        return max(-u.min(), u.max() - 320, -v.min(), v.max() - 192)

    assert farthest_outside_px(zoom) <= 0.5 < farthest_outside_px(zoom / 1.0072)


@pytest.mark.parametrize(
    ("model", "coefficients", "message"),
    [
        ("plumb_bob", (-9.0, 0.0, 0.0, 0.0), "without folding it"),
        ("plumb_bob", (1e200, 0.0, 0.0, 0.0), "without folding it"),
        ("fisheye", (-5.0, 0.0, 0.0, 0.0), "without folding it"),
        ("rational", (0.0,) * 5 + (-3.0, 0.0, 0.0), "without folding it"),
        (
            "equidistant",
            (0.0,) * 4,
            "unknown distortion model 'equidistant'; it is one of plumb_bob, rational, fisheye",
        ),
        ("fisheye", (0.0,) * 5, "expected 4 finite coefficients, found"),
        ("plumb_bob", (0.0,) * 3, "expected 4 or 5 finite coefficients, found"),
        ("plumb_bob", (0.0, np.nan, 0.0, 0.0), "finite coefficients"),
    ],
)
def test_a_distortion_that_no_lens_has_is_an_error(model, coefficients, message):
    with pytest.raises(FrameError, match=message):
        pinhole_rows(lens(model, coefficients))


def test_a_damaged_photograph_or_one_of_another_size_is_an_error(tmp_path):
    made = lens(*BARREL)
    Image.new("RGB", (32, 19)).save(tmp_path / "small.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "small.png").read_bytes()[:40])
    for name, message in (("small.png", "expected 192 x 320 px"), ("cut.png", "decoded"), ("none.png", "missing")):
        with pytest.raises(FrameError, match=message):
            load_undistorted(tmp_path / name, made)
