import math
from dataclasses import fields, replace

import pytest
import torch
from test_augment import random_rig
from test_train_student import RANGE_M, STUDENT

from data_cache.dataset import CachedRigs, collate
from stages.augment import thin_lidar
from stages.bins import BinSpec, align_frame, closed_form_prob, decode, map_disparity
from stages.distill import Learner, lidar_fitted_depth_m, loss_terms
from stages.losses import LossSpec, LossTerms, bin_kl
from stages.student.model import Student

BINS = BinSpec(count=16, prob_stride=4)
CPU = torch.device("cpu")
NOTHING = {"supervised": 0.0, "kl": 0.0, "relation": 0.0}


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
    return loss_terms(model or learner(), batch, batch.image.float() / 255, spec, RANGE_M, CPU, "fp32")


@pytest.mark.parametrize("name", [field.name for field in fields(LossTerms) if field.name != "photometric"])
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


def test_the_literal_frame_takes_the_teacher_at_its_word_and_the_aligned_one_does_not():
    batch, model = rigs(), learner().eval()
    with torch.no_grad():
        out = model.student(batch.image.float() / 255, batch.focal_px, batch.view_valid)
        teacher = decode(batch.bins, BINS)
        literal = bin_kl(teacher, out.logit, batch.view_valid)
        aligned = bin_kl(align_frame(teacher, out.logit.softmax(2)), out.logit, batch.view_valid)
        assert (literal - aligned).abs() > 0.1
        for frame, expected in (("literal", literal), ("aligned", aligned)):
            torch.testing.assert_close(terms(LossSpec(kl=1.0, frame=frame), batch, model).kl, expected)


def test_the_teacher_is_fitted_to_lidar_by_hand():
    """U of x = 0, 1/2, 1; LiDAR says 1/depth = 0.02 + 0.18 x at two of the three columns: 50, 9.09 and 5 m."""
    bins = BinSpec(count=256, sigma=0.5)
    x = torch.tensor([0.05, 0.5, 0.95]).repeat(1, 1, 6, 1)
    u = torch.log1p(100 * x) / math.log(101)
    expected = 1 / (0.02 + 0.18 * x)
    lidar = expected.clone()
    lidar[..., 1] = 0
    depth, fitted = lidar_fitted_depth_m(closed_form_prob(u, bins), lidar, (0.1, 80.0))
    assert fitted.tolist() == [[True]]
    torch.testing.assert_close(depth[0, 0, 0], expected[0, 0, 0], rtol=0.02, atol=0)
    torch.testing.assert_close(map_disparity(u), x)


def test_a_teacher_against_the_lidar_or_with_nine_points_is_not_fitted():
    bins = BinSpec(count=64)
    u = torch.linspace(0.1, 0.9, 4).repeat(1, 1, 5, 1)
    prob = closed_form_prob(u, bins)
    grows = torch.tensor([2.0, 4.0, 8.0, 16.0]).repeat(1, 1, 5, 1)  # far where the teacher says near
    assert lidar_fitted_depth_m(prob, grows, (0.1, 80.0))[1].tolist() == [[False]]
    right = grows.flip(-1)
    assert lidar_fitted_depth_m(prob, right, (0.1, 80.0))[1].tolist() == [[True]]
    nine = torch.where(torch.arange(20).view(1, 1, 5, 4) < 9, right, 0.0)
    depth, fitted = lidar_fitted_depth_m(prob, nine, (0.1, 80.0))
    assert fitted.tolist() == [[False]]
    assert depth.isfinite().all()


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


def _sideways() -> torch.Tensor:
    step = torch.zeros(4, 4)
    step[0, 3] = 1
    return step
