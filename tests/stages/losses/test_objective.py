from dataclasses import fields, replace

import pytest
import torch
from support.random_rigs import random_rig
from support.trainings import RANGE_M, STUDENT
from torch.nn.functional import interpolate

from data_cache.dataset import CachedRigs, collate
from data_cache.shards.encodings import map_arrays
from stages.losses.objective import Learner, loss_terms
from stages.losses.spec import LossSpec
from stages.losses.terms import LossTerms, bin_kl, output_level
from stages.student.model import Student
from stages.targets.binning import AffineBinning
from stages.targets.bins import decode, expected_position, move_bins, student_frame
from stages.targets.lidar_fit import fit_disparity
from stages.targets.lidar_frame import lidar_frame, teacher_disparity
from stages.targets.spec import BinSpec
from stages.training.augment import thin_lidar

BINS = BinSpec(count=16, prob_stride=4)
BETWEEN_CAMERAS = ("photometric", "agreement", "bin_relation")
NOTHING = {field.name: 0.0 for field in fields(LossTerms)}


def rigs(token_channels: int = 4) -> CachedRigs:
    """Two rigs of three views, the last one missing, with LiDAR of 1 to 21 m."""
    singles = [random_rig(3, size=STUDENT.input_size)[0] for _ in range(2)]
    singles = [replace(rig, lidar_depth_m=1 + 20 * rig.lidar_depth_m) for rig in singles]
    batch = collate(singles)
    return replace(batch, tokens=batch.tokens[..., :token_channels])


def learner(token_channels: int = 4) -> Learner:
    torch.manual_seed(0)
    return Learner(Student(STUDENT, BINS), token_channels)


def terms(spec: LossSpec, batch: CachedRigs | None = None, model: Learner | None = None) -> LossTerms:
    batch = batch or rigs()
    return loss_terms(model or learner(), AffineBinning(), batch, batch.image.float() / 255, spec, RANGE_M, "fp32")


@pytest.mark.parametrize("name", [field.name for field in fields(LossTerms) if field.name not in BETWEEN_CAMERAS])
def test_each_term_is_computed_alone_and_teaches_the_student(name):
    model = learner()
    found = terms(LossSpec(**(NOTHING | {name: 1.0})), model=model)
    computed = {key: value for key, value in vars(found).items() if value is not None}
    assert list(computed) == [name]
    assert computed[name] > 0
    computed[name].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())


def test_what_a_missing_view_holds_matters_to_no_term():
    batch = rigs()
    noise = torch.Generator().manual_seed(9)
    tokens, relation = batch.tokens.clone(), batch.relation.clone()
    tokens[:, 2] = torch.randn(tokens[:, 2].shape, generator=noise)
    relation[:, 1:] = torch.randn(relation[:, 1:].shape, generator=noise)
    lidar = batch.lidar_depth_m.clone()
    lidar[:, 2] = 0  # as the cache has it
    spec = LossSpec(
        kl=1.0, cross=1.0, relation=1.0, output=1.0, logit=1.0, feature=1.0, all_relation=1.0, completion=1.0
    )
    model = learner().eval()
    plain = replace(batch, lidar_depth_m=lidar)
    expected, found = terms(spec, plain, model), terms(spec, replace(plain, tokens=tokens, relation=relation), model)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)


def test_the_frame_says_how_the_teachers_bins_are_read():
    """LiDAR that agrees with the teacher of view 0 and is the other way round in view 1."""
    batch, model = rigs(), learner().eval()
    near = interpolate(expected_position(decode(batch.bins, BINS)), size=STUDENT.input_size)
    lidar = torch.stack([20 - 15 * near[:, 0], 5 + 15 * near[:, 1], torch.zeros_like(near[:, 2])], dim=1)
    batch = replace(batch, lidar_depth_m=lidar)
    with torch.no_grad():
        out = model.student(batch.image.float() / 255, batch.focal_px, batch.view_valid)
        teacher = decode(batch.bins, BINS)
        literal = bin_kl(teacher, out.logit, batch.view_valid)
        aligned = move_bins(teacher, student_frame(teacher, out.logit.softmax(2)))
        own = bin_kl(aligned, out.logit, batch.view_valid)
        fit = fit_disparity(teacher_disparity(teacher, batch.lidar_depth_m, AffineBinning()), batch.lidar_depth_m)
        assert fit.fitted[:, :2].tolist() == [[True, False]] * 2
        moved = move_bins(teacher, lidar_frame(fit, out.centers_m, AffineBinning()))
        moved[:, 1] = aligned[:, 1]
        lidar = bin_kl(moved, out.logit, batch.view_valid)
        assert min((literal - own).abs(), (literal - lidar).abs(), (own - lidar).abs()) > 0.01
        for frame, expected in (("literal", literal), ("student", own), ("lidar", lidar)):
            torch.testing.assert_close(terms(LossSpec(kl=1.0, frame=frame), batch, model).kl, expected)


def test_the_output_baseline_takes_the_teacher_no_farther_than_the_range():
    """LiDAR on the nearer half says 1/depth = 0.2 x - 0.05: negative where the teacher sees least disparity."""
    batch, model = rigs(), learner().eval()
    x = teacher_disparity(decode(batch.bins, BINS), batch.lidar_depth_m, AffineBinning())
    near = (x > 0.5) & batch.view_valid[..., None, None]
    batch = replace(batch, lidar_depth_m=torch.where(near, 1 / (0.2 * x - 0.05), 0.0))
    fit = fit_disparity(x, batch.lidar_depth_m)
    assert torch.equal(fit.fitted, batch.view_valid)
    assert fit.depth_m(x)[batch.view_valid].max() > 900
    with torch.no_grad():
        out = model.student(batch.image.float() / 255, batch.focal_px, batch.view_valid)
        expected = output_level(out.depth_m, fit.depth_m(x).clamp(*RANGE_M), fit.fitted)
        torch.testing.assert_close(terms(LossSpec(output=1.0), batch, model).output, expected)


def test_thinned_lidar_is_a_share_that_depends_on_the_frame_alone():
    rig, _ = random_rig(6, size=(32, 64))
    lidar = torch.where(rig.lidar_depth_m > 0.5, rig.lidar_depth_m, 0.0)
    rig = replace(rig, lidar_depth_m=lidar)
    thin = thin_lidar(rig, 0.1).lidar_depth_m
    kept = thin > 0
    assert torch.equal(thin[kept], lidar[kept])
    assert kept.sum() / (lidar > 0).sum() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(thin_lidar(rig, 0.1).lidar_depth_m, thin)
    assert not torch.equal(thin_lidar(replace(rig, frame_ids=("d/1",)), 0.1).lidar_depth_m, thin)
    assert torch.equal(thin_lidar(rig, 1.0).lidar_depth_m, lidar)


def test_the_photometric_term_reaches_the_student_through_the_neighbour_in_time():
    """Random rigs see each other nowhere; a camera that stood where it stands now sees the same."""
    model, batch = learner(), rigs()
    assert batch.neighbour is not None
    still = replace(batch, neighbour=replace(batch.neighbour, **{
        name: getattr(batch, name) for name in ("intrinsics", "rig_from_cam", "view_valid")
    }))  # fmt: skip
    shifted = replace(still, neighbour=replace(still.neighbour, rig_from_cam=still.rig_from_cam + 0.2 * _sideways()))
    found = terms(LossSpec(**(NOTHING | {"photometric": 1.0})), shifted, model)
    assert found.photometric is not None
    assert found.photometric > 0
    found.photometric.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())


def test_the_agreement_term_reaches_the_student_through_cameras_that_see_the_same():
    model, batch = learner(), rigs()
    for name in ("intrinsics", "rig_from_cam"):
        cameras = getattr(batch, name)
        batch = replace(batch, **{name: cameras[:, :1].expand_as(cameras)})
    found = terms(LossSpec(**(NOTHING | {"agreement": 1.0})), batch, model)
    assert found.agreement is not None
    assert found.agreement > 0
    found.agreement.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())


def test_the_bin_relation_reaches_the_student_where_the_teacher_finds_a_surface_in_two_views():
    """Three cameras in one place, of which the teacher says the same; a fit puts it in metres."""
    model, batch = learner(), rigs()
    for name in ("intrinsics", "rig_from_cam"):
        cameras = getattr(batch, name)
        batch = replace(batch, **{name: cameras[:, :1].expand_as(cameras)})
    one_map = map_arrays(lambda array: array[:, :1].expand_as(array), batch.bins)
    fit = torch.tensor([0.05, 0.04]).expand(2, 3, 2)
    batch = replace(batch, bins=one_map, lidar_depth_m=torch.zeros_like(batch.lidar_depth_m), teacher_fit=fit)
    found = terms(LossSpec(**(NOTHING | {"bin_relation": 1.0})), batch, model)
    assert found.bin_relation is not None
    assert found.bin_relation > 0
    found.bin_relation.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())


def _sideways() -> torch.Tensor:
    step = torch.zeros(4, 4)
    step[0, 3] = 1
    return step


def test_a_view_with_a_fit_instead_of_returns_learns_from_the_teachers_depth():
    """View 0 keeps its LiDAR, view 1 has a fit; depths beyond the range, as of the sky, teach nothing."""
    batch, model = rigs(), learner().eval()
    scale, shift = 0.05, 0.04
    disparity = teacher_disparity(decode(batch.bins, BINS), batch.lidar_depth_m, AffineBinning())
    depth_m = 1 / (shift + scale * disparity)
    depth_m = torch.where(depth_m < RANGE_M[1], depth_m, 0.0)
    lidar = torch.stack(
        [batch.lidar_depth_m[:, 0], torch.zeros_like(depth_m[:, 1]), torch.zeros_like(depth_m[:, 2])], 1
    )
    fit = torch.tensor([[0.0, 0.0], [scale, shift], [0.0, 0.0]]).expand(2, 3, 2)
    spec = LossSpec(kl=1.0, output=1.0, completion=1.0)
    found = terms(spec, replace(batch, lidar_depth_m=lidar, teacher_fit=fit), model)
    told = torch.stack([lidar[:, 0], depth_m[:, 1], lidar[:, 2]], 1)
    expected = terms(spec, replace(batch, lidar_depth_m=told), model)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)
