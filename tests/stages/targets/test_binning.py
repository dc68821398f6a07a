import math

import pytest
import torch
from support.fakes import FakeSource, tiny_identity

from data_cache.errors import SettingError
from data_cache.shards.identity import SplitFrames
from data_cache.sources.selectors import spread
from stages.targets.binning import (
    AffineBinning,
    FittedBinning,
    MetricBinning,
    bend,
    binning_definition,
    resolve_binning,
)
from stages.targets.bins import affine_invariant_map
from stages.targets.spec import BinSpec

KNOTS = (0.0, 0.1, 0.4, 1.0)


def disparities(count: int = 2, size: tuple[int, int] = (12, 16)) -> torch.Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(1)) + 0.05


def test_the_closed_form_and_its_definition_are_what_they_were():
    """The text stands in every cache that exists."""
    assert AffineBinning().definition == "affine-invariant log map: a=100, quantiles 0.01..0.99"
    assert binning_definition(BinSpec()) == AffineBinning().definition
    d = disparities()
    assert torch.equal(AffineBinning()(d, (6, 8)), affine_invariant_map(d, (6, 8)))


def test_a_fitted_map_bends_the_closed_form_by_hand():
    """Knots at 0, 1/3, 2/3, 1: half way from the second to the third is (0.1 + 0.4) / 2."""
    d, binning = disparities(), FittedBinning(KNOTS)
    u, bent = AffineBinning()(d, (6, 8)), binning(d, (6, 8))
    assert bent.shape == u.shape
    torch.testing.assert_close(
        bend(torch.tensor([0.0, 1 / 3, 0.5, 0.9, 1.0]), KNOTS), torch.tensor([0.0, 0.1, 0.25, 0.82, 1.0])
    )
    assert torch.equal(bent, bend(u, KNOTS))
    torch.testing.assert_close(binning.disparity(bent), AffineBinning().disparity(u), rtol=1e-4, atol=1e-5)
    order = u.flatten().argsort()
    assert (bent.flatten()[order].diff() >= 0).all()
    torch.testing.assert_close(binning(3 * d + 7, (6, 8)), bent, rtol=0, atol=1e-4)


def test_what_is_not_finite_stays_so_in_every_strategy():
    d = disparities(1)
    d[0, 0, 0] = float("nan")
    for binning in (AffineBinning(), FittedBinning(KNOTS), MetricBinning(1.0, 100.0)):
        assert not binning(d, (6, 8)).isfinite().all()


def test_metric_bins_by_hand():
    """Between 1 and 100 m: 10 m is half way, 1000 m is beyond, 0.1 m is too near; 1/D is averaged, not D."""
    depth_m = torch.tensor([[[1.0, 10.0, 100.0, 1000.0, 0.1, 20.0]]])
    u = MetricBinning(1.0, 100.0)(1 / depth_m, (1, 6))
    torch.testing.assert_close(u, torch.tensor([[[1.0, 0.5, 0.0, 0.0, 1.0, 1 - math.log10(20) / 2]]]))
    halves = MetricBinning(1.0, 100.0)(1 / torch.tensor([[[5.0, 20.0]]]), (1, 1))
    torch.testing.assert_close(halves, torch.tensor([[[1 - math.log10(8) / 2]]]))
    assert MetricBinning(1.0, 100.0)(torch.zeros(1, 2, 2), (1, 1)).item() == 0


def test_metric_bins_do_not_depend_on_the_rest_of_the_image():
    d = disparities(1)
    other = d.clone()
    other[0, :, 8:] *= 3
    binning = MetricBinning(0.5, 50.0)
    assert torch.equal(binning(d, (6, 8))[:, :, :4], binning(other, (6, 8))[:, :, :4])


@pytest.mark.parametrize("space", ["disparity", "affine_depth"])
def test_metric_bins_refuse_a_teacher_without_metres(space):
    with pytest.raises(SettingError, match=rf"needs a teacher that predicts metres; this one predicts {space}"):
        resolve_binning(BinSpec(strategy="metric"), space, None)


def test_a_recipe_gets_its_strategy():
    assert resolve_binning(BinSpec(), "disparity", None) == AffineBinning()
    metric = BinSpec(strategy="metric", metric_range_m=(2.0, 60.0))
    assert resolve_binning(metric, "log_depth", None) == MetricBinning(2.0, 60.0)
    assert resolve_binning(BinSpec(strategy="fitted"), "depth", KNOTS) == FittedBinning(KNOTS)
    with pytest.raises(SettingError, match="run `surround fit-bins RECIPE` first"):
        resolve_binning(BinSpec(strategy="fitted"), "depth", None)


def test_definitions_differ_where_bins_differ():
    specs = [
        BinSpec(),
        BinSpec(strategy="fitted"),
        BinSpec(strategy="local"),
        BinSpec(strategy="metric"),
        BinSpec(strategy="metric", metric_range_m=(1.0, 80.0)),
    ]
    assert len({binning_definition(spec) for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"strategy": "best"}, "strategy: expected one of affine, fitted, local, metric, got 'best'"),
        ({"fit_frames": 0}, "fit_frames: expected at least 1"),
        ({"metric_range_m": (5.0, 5.0)}, "metric_range_m: expected 0 < near < far"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        BinSpec(**setting)


def test_an_identity_without_knots_is_the_identity_that_it_was():
    frames = SplitFrames(("a", "b"), ())
    identity = tiny_identity(frames)
    assert "bin_knots" not in identity.stored()
    assert len(identity.stored()) == 23
    # sha256 of this identity before knots were known to the format.
    assert identity.sha256 == BEFORE
    assert tiny_identity(frames, bin_knots=KNOTS).stored()["bin_knots"] == KNOTS
    assert len({tiny_identity(frames, bin_knots=k).sha256 for k in (None, KNOTS, KNOTS[::-1])}) == 3


BEFORE = "cbd5f726b855c02f24988ee427ee80e16722326679ce7231d974ada079a6c627"


def test_frames_are_spread_evenly_by_hand():
    frame_ids = FakeSource(10).drives["d"]
    assert spread(frame_ids, 3) == ("d/1", "d/5", "d/8")
    assert spread(frame_ids, 99) == frame_ids
