"""The model card: what the hub reads of it, and that it says nothing that the files do not say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.reports import PROVENANCE, REPORT, WITHOUT_LIDAR, scores
from support.students import LINEAGE, student

from data_cache.errors import SourceError
from pipeline.errors import RecipeError
from pipeline.release.card import NOT_MEASURED, CardFacts, CardSources, card_sources, model_card
from pipeline.release.licences import student_licence
from pipeline.report.results_file import ReportFile, write_report_file
from stages.student.checkpoint import Calibration, LoadedStudent, save_student

TAUGHT = replace(LINEAGE, teacher="depth-anything-v2-small", teacher_licence="Apache-2.0", dataset="nuscenes")


@pytest.fixture(scope="module")
def facts() -> CardFacts:
    sources = CardSources(Path("s.safetensors"), "ab" * 32, None, None)
    return CardFacts("van", LoadedStudent(student(), TAUGHT), sources, ("front", "le|ft"), "van.onnx", "PARITY")


def with_report(facts: CardFacts, report=REPORT) -> CardFacts:
    return replace(facts, sources=replace(facts.sources, report=ReportFile(Path("r/eval/report.json"), report, {})))


def test_without_a_report_the_card_holds_no_number_of_accuracy(facts):
    text = model_card(facts)
    assert NOT_MEASURED in text
    assert "AbsRel" not in text
    data = ModelCard(text).data.to_dict()
    assert data == {
        "base_model": ["depth-anything/Depth-Anything-V2-Small-hf"],
        "datasets": ["nuscenes"],
        "library_name": "surround-distill",
        "license": "other",
        "license_link": "README.md",
        "license_name": "Apache-2.0 AND CC-BY-NC-SA-4.0",
        "pipeline_tag": "depth-estimation",
        "tags": ["metric-depth", "surround-view", "multi-camera", "knowledge-distillation", "onnx"],
    }


def test_the_hub_reads_the_numbers_of_the_report_with_their_protocol(facts):
    """Errors of `scores(100)` begin with 100 as AbsRel, 100.002 as RMSE, 100.004 as delta."""
    text = model_card(with_report(facts, replace(REPORT, dense_truth={"all": scores(700)})))
    data = ModelCard(text).data
    assert (data.model_name, data.metrics) == ("van", ["abs_rel", "rmse", "d1"])
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in data.eval_results}
    lidar, dense = "against LiDAR, protocol surrounddepth", "against dense truth"
    assert found == {
        (lidar, "abs_rel"): 100,
        (lidar, "rmse"): 100.002,
        (lidar, "d1"): 100.004,
        (dense, "abs_rel"): 700,
        (dense, "rmse"): 700.002,
        (dense, "d1"): 700.004,
    }
    assert {(one.dataset_type, one.dataset_split) for one in data.eval_results} == {("synthetic", "val")}
    assert "Protocol surrounddepth, 0.1 to 80 m: 3 frames, 11 images" in text
    assert re.search(r"\| student metric +\| +100\.000 \|", text)


def test_the_card_says_how_sure_the_student_is(facts):
    assert "how sure it is of a depth (sigma) is not known" in model_card(facts)
    sure = replace(facts.loaded, calibration=Calibration(0.2, "van", "monday", 12345))
    assert "calibrated at 12,345 LiDAR returns of van monday" in model_card(replace(facts, loaded=sure))


def test_a_number_that_is_not_there_is_left_out(facts):
    data = ModelCard(model_card(with_report(facts, WITHOUT_LIDAR))).data
    assert data.eval_results is None
    mean = replace(scores(100).mean, rmse=float("nan"))
    report = replace(REPORT, student=replace(REPORT.student, metric=replace(scores(100), mean=mean)))
    data = ModelCard(model_card(with_report(facts, report))).data
    assert [one.metric_type for one in data.eval_results] == ["abs_rel", "d1"]


@pytest.mark.parametrize(
    ("dataset", "teacher_licence", "licence", "name"),
    [
        ("synthetic", "Apache-2.0", "apache-2.0", None),
        ("synthetic", "CC-BY-NC-4.0", "other", "Apache-2.0 AND CC-BY-NC-4.0"),
        ("rig_folder", "Apache-2.0", "other", "see-licences"),
        ("synthetic", "unknown: see the model card", "other", "see-licences"),
    ],
)
def test_the_licence_is_that_of_all_it_was_made_from(facts, dataset, teacher_licence, licence, name):
    lineage = replace(TAUGHT, dataset=dataset, teacher_licence=teacher_licence)
    text = model_card(replace(facts, loaded=replace(facts.loaded, lineage=lineage)))
    data = ModelCard(text).data
    assert (data.license, data.license_name) == (licence, name)
    assert teacher_licence in text.partition("## Licences")[2]


def test_the_licence_of_a_student_names_each_licence_once(facts):
    """Apache-2.0 is this program's, and EfficientNet-lite's too."""
    spec = facts.loaded.student.spec
    for encoder, licence in (
        ("efficientnet-lite0", "Apache-2.0"),
        ("mobilenet-v2", "Apache-2.0 AND BSD-3-Clause"),
        ("resnet-10", "Apache-2.0 AND BSD-3-Clause"),
    ):
        assert student_licence(replace(spec, encoder=encoder, pretrained=True)) == licence


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "run/student/last.safetensors"
    save_student(path, student(), LINEAGE)
    return path


def test_a_report_about_another_checkpoint_does_not_count(tmp_path, checkpoint):
    out = tmp_path / "release/van.onnx"
    assert card_sources(checkpoint, out).report is None
    sha256 = card_sources(checkpoint, out).checkpoint_sha256
    write_report_file(tmp_path / "run/eval", REPORT, {**PROVENANCE, "checkpoint_sha256": sha256})
    found = card_sources(checkpoint, out)
    assert (found.report is not None, found.weights) == (True, tmp_path / "release/van.safetensors")
    write_report_file(tmp_path / "run/eval", REPORT, {**PROVENANCE, "checkpoint_sha256": "of another"})
    assert card_sources(checkpoint, out).report is None
    (tmp_path / "run/eval/report.json").write_text("{")
    with pytest.raises(SourceError, match=r"report\.json"):
        card_sources(checkpoint, out)


def test_a_card_replaces_only_a_card_and_its_own_weights(tmp_path, checkpoint):
    out = tmp_path / "release/van.onnx"
    out.parent.mkdir()
    (out.parent / "README.md").write_text("# my project\n")
    with pytest.raises(RecipeError, match=r"expected no README\.md in .*, or a card of this program"):
        card_sources(checkpoint, out)
    (out.parent / "README.md").write_text("---\nlibrary_name: surround-distill\n---\n")
    (out.parent / "van.safetensors").write_text("of yesterday")
    assert card_sources(checkpoint, out).weights == out.parent / "van.safetensors"
    assert card_sources(checkpoint, checkpoint.parent / "van.onnx").weights == checkpoint
    (out.parent / "other.safetensors").write_text("")
    with pytest.raises(RecipeError, match=r"one checkpoint, van\.safetensors, found other\.safetensors in"):
        card_sources(checkpoint, out)
