"""`surround export`: turns a checkpoint into files for a vehicle, and measures what they cost."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from data_cache.errors import FrameError, SurroundWarning
from data_cache.files import count_text, file_sha256, replace_atomically, require_writable
from data_cache.frames import images
from data_cache.frames.rig import Rig
from data_cache.shards.reader import CacheReader
from data_cache.sources.base import Source
from data_cache.sources.selectors import spread
from pipeline.api import UNCALIBRATED
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.recipe.provenance import surroundings
from pipeline.recipe.run_folder import RunFolder, find_cache
from pipeline.release.card import CARD, CardFacts, card_sources, model_card
from pipeline.release.licences import student_licence
from pipeline.report.markdown import Table, markdown_table
from pipeline.runs.splits import learnt_from, open_data, refuse_leak, select_frames
from stages.compute.cpu import cpu_flags, flags_text
from stages.compute.progress import progress_bar
from stages.deploy.export import (
    ExportError,
    export_program,
    onnx_model,
    program_file,
    require_extra,
    require_views_alone,
    with_metadata,
)
from stages.deploy.parity import (
    MeasuredRig,
    Parity,
    compare,
    graph_contenders,
    int8_contenders,
    measured_rig,
    require_parity,
    require_sigma,
    torch_contenders,
)
from stages.deploy.quantize import INT8_TARGETS, quantized, require_cpu_for
from stages.deploy.runtimes import DeployedRigs, batches, cameras, deployed_rig, torch_runner
from stages.evaluation.protocols import SURROUNDDEPTH
from stages.student.checkpoint import LoadedStudent, find_checkpoint, load_student
from stages.student.model import IMAGE_MEAN, IMAGE_STD

FORMAT = "surround-export/1"
SUFFIX = ".onnx"
CALIBRATION_FRAMES = 32
ROUNDS = 10


@dataclass(frozen=True)
class ExportRun:
    """What was exported and how it compares.

    Attributes:
        files: what was written, the ONNX file first.
        dataset, split, frames: what was compared on.
        truth: what abs_rel is measured against.
        batch: rigs at a time, None where the graph takes any number.
        views_per_call: cameras of each rig that the graph takes: all of them, or 1.
        threads: of every runtime.
        cpu: flags of the CPU that ran them, or `unknown`.
        parity: one entry per way to run it.
        quarantined: frames that could not be read, and why.
        surroundings: versions, machine and date.
    """

    files: tuple[str, ...]
    dataset: str
    split: str
    frames: int
    truth: str
    batch: int | None
    views_per_call: int
    threads: int
    cpu: str
    parity: tuple[Parity, ...]
    quarantined: dict[str, str]
    surroundings: dict[str, object]


def run_export(
    checkpoint: Path,
    out: Path,
    *,
    on: str | None = None,
    overrides: Sequence[str] = (),
    batch: int | None = 1,
    one_camera: bool = False,
    int8: str | None = None,
    cache: str | None = None,
    frames: int = 8,
    pt2: bool = False,
    card: bool = False,
    confidence: bool = False,
) -> ExportRun:
    """Export a student, compare it with itself in PyTorch on test frames, and write the files if it is still the same.

    Args:
        checkpoint: file of a student, or a folder with one, see `find_checkpoint`.
        out: ONNX file; others get its name with another suffix. All are replaced in one step each, or not written.
        on: RECIPE or RECIPE=DATA with the test frames and the cameras of the rig; None for the run's own recipe.
        overrides: of that recipe.
        batch: rigs at a time; None leaves it open.
        one_camera: the graph takes one camera of each rig, not all of them.
        int8: a key of INT8_TARGETS for a second file, quantised; None for none.
        cache: run or cache folder, address or recipe on whose frames it is calibrated; None for the checkpoint's run.
        frames: test frames to compare on, spread over the split.
        pt2: also write the program of torch.export.
        card: also write a model card beside `out`, and the checkpoint if it lies elsewhere.
        confidence: the graph also gives sigma, calibrated if the student is.

    Raises:
        CheckpointError: if there is no usable student.
        RecipeError, SourceError, CacheError: if recipe, data, cache or report cannot be used, test frames were learnt
            from, or the folder of `out` is no place for a card.
        SettingError: if the packages for it are not installed, or this CPU lacks what the int8 file needs.
        ExportError: if no frame can be read, if the graph takes one camera but the student looks at its neighbours, or
            if what came out is not the student.
        WriteError: if a file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise RecipeError(f"--out: expected a file name that ends in {SUFFIX}, got {out}")
    require_writable(out)
    require_extra()
    if int8:
        require_cpu_for(int8)
    checkpoint = find_checkpoint(checkpoint)
    loaded = load_student(checkpoint)
    sources = card_sources(checkpoint, out) if card else None
    if one_camera:
        require_views_alone(loaded.student)
    size = loaded.student.spec.input_size
    folder = RunFolder.of_checkpoint(checkpoint)
    recipe = _recipe(on, folder, overrides)
    source = open_data(recipe.data)
    test_ids = select_frames(recipe.data, source, recipe.data.test)
    if source.name == loaded.lineage.dataset:
        refuse_leak(learnt_from(recipe, folder, source), test_ids)
    calibration = []
    if int8:  # first, so that a wrong cache fails before anything that takes time
        calibration = _calibration_rigs(find_cache(cache or str(folder.root)), source.rig, size, test_ids)
    quarantined: dict[str, str] = {}
    rigs = list(_readable(source, spread(test_ids, frames), size, quarantined))
    if not rigs:
        raise ExportError(f"no test frame to compare on: {next(iter(quarantined.values()))}")

    with progress_bar(2 + bool(int8) + pt2, 0, "export", "part") as bar:
        bar.set_postfix_str("graph")
        views = 1 if one_camera else source.rig.view_count
        told = _metadata(loaded, checkpoint, source.rig, batch, views)
        scale = None
        if confidence:
            if loaded.calibration is None:
                warnings.warn(UNCALIBRATED, SurroundWarning, stacklevel=2)
            scale = loaded.calibration.sigma_scale if loaded.calibration is not None else 1.0
            told |= {"sigma_scale": scale, "calibration": loaded.calibration and asdict(loaded.calibration)}
        program = export_program(loaded.student, views, batch, scale)
        graph = onnx_model(program, told | {"precision": "fp32"})
        files = {out: graph}
        contenders = [*torch_contenders(loaded.student, checkpoint.stat().st_size)]
        contenders += graph_contenders(graph, one_camera=one_camera)
        bar.update()
        if int8:
            bar.set_postfix_str("int8")
            if one_camera:
                calibration = [one for rig in calibration for one in cameras(rig) if one.focal_px.all()]
            small = quantized(graph, batches(calibration, batch or 1), int8)
            kind = {"precision": "int8", "int8_target": int8, "int8_right_on": INT8_TARGETS[int8].right_on}
            small = with_metadata(small, told | kind)
            files[out.with_suffix(".int8" + SUFFIX)] = small
            contenders += int8_contenders(small, int8, one_camera=one_camera)
            bar.update()
        if pt2:
            files[out.with_suffix(".pt2")] = program_file(program, told | {"precision": "fp32"})
            bar.update()
        bar.set_postfix_str("comparing and timing")
        parity = compare(
            torch_runner(loaded.student, "fp32"),
            contenders,
            rigs,
            batch=batch or 1,
            range_m=SURROUNDDEPTH.range_of(source.name),
            rounds=ROUNDS,
        )
        bar.update()
    require_parity(parity)
    if scale is not None:
        require_sigma(graph, loaded.student, scale, rigs[0].inputs, one_camera=one_camera)
    truth = "dense truth" if rigs[0].dense else "LiDAR"
    done = ExportRun(
        tuple(map(str, files)),
        source.name,
        recipe.data.named(recipe.data.test),
        len(rigs),
        truth,
        batch,
        views,
        torch.get_num_threads(),
        flags_text(cpu_flags()),
        parity,
        quarantined,
        surroundings(),
    )
    if sources is not None:
        measured = f"{measured_text(done)}\n\n{parity_table(parity, truth)}"
        facts = CardFacts(out.stem, loaded, sources, source.rig.camera_names, out.name, measured)
        files[out.parent / CARD] = model_card(facts).encode()
        if sources.weights != checkpoint:
            files[sources.weights] = checkpoint.read_bytes()
    for path, data in files.items():
        replace_atomically(path, partial(Path.write_bytes, data=data))
    return replace(done, files=tuple(map(str, files)))


def measured_text(done: ExportRun) -> str:
    """What the table of `parity_table` was measured on."""
    return (
        f"Compared with PyTorch in fp32 on {count_text(done.frames, 'frame')} of {done.dataset} {done.split}, timed on"
        f" {count_text(done.threads, 'thread')}: {done.surroundings['machine']}, {done.surroundings['date']}."
    )


def parity_table(parity: Sequence[Parity], truth: str) -> str:
    """One row per way to run the student, for a terminal; differences are those to PyTorch in fp32."""
    metres = f"AbsRel ({truth})"
    header = ("runtime", "precision", "right on", "ms per rig", "p95", "largest diff.", "mean diff.", metres, "MB")
    rows = tuple(
        (
            one.runtime,
            one.precision,
            one.right_on,
            *((f"{one.ms_per_rig.p50_ms:.1f}", f"{one.ms_per_rig.p95_ms:.1f}") if one.ms_per_rig else ("-", "-")),
            f"{one.max_relative:.1e}",
            f"{one.mean_relative:.1e}",
            "-" if one.abs_rel is None else f"{one.abs_rel:.4f}",
            f"{one.file_bytes / 1e6:.1f}",
        )
        for one in parity
    )
    return markdown_table(Table("", "", header, rows))


def _recipe(on: str | None, folder: RunFolder, overrides: Sequence[str]) -> Recipe:
    if on is None and not folder.recipe.is_file():
        raise RecipeError(f"--on: the checkpoint lies in no run ({folder.recipe} is missing); name a recipe")
    name, _, data = (on or str(folder.recipe)).partition("=")
    return load_recipe(name, overrides, Path(data) if data else None)


def _calibration_rigs(location: str, rig: Rig, size: tuple[int, int], test_ids: tuple[str, ...]) -> list[DeployedRigs]:
    reader = CacheReader(location)
    identity = reader.identity
    if identity.image_size != size or len(identity.camera_names) != rig.view_count:
        raise ExportError(
            f"{reader.store.location}: expected images of {list(size)} from {rig.view_count} cameras, found"
            f" {list(identity.image_size)} from {len(identity.camera_names)}; name this student's cache with --cache"
        )
    refuse_leak(reader.frames, test_ids)
    usable = reader.usable(reader.frames.train)
    if not usable:
        raise ExportError(f"{reader.store.location}: all frames are quarantined; there is nothing to calibrate on")
    rigs = []
    for frame_id in spread(usable, CALIBRATION_FRAMES):
        cameras = reader.read_cameras(frame_id)
        rigs.append(deployed_rig(reader.read_image(frame_id), cameras.intrinsics, cameras.view_valid))
    return rigs


def _readable(
    source: Source, frame_ids: Sequence[str], size: tuple[int, int], quarantined: dict[str, str]
) -> Iterator[MeasuredRig]:
    with progress_bar(len(frame_ids), 0, "export", "frame") as bar:
        for frame_id in frame_ids:
            try:
                yield measured_rig(source.frame(frame_id), size)
            except FrameError as error:
                quarantined[frame_id] = str(error)
            bar.update()


def _metadata(loaded: LoadedStudent, checkpoint: Path, rig: Rig, batch: int | None, views: int) -> dict[str, object]:
    """What the file says of itself; docs/EXPORT.md lists the names."""
    spec, lineage = loaded.student.spec, loaded.lineage
    return {
        "format": FORMAT,
        "input_size": spec.input_size,
        "cameras": rig.camera_names,
        "batch": batch or "dynamic",
        "views_per_call": views,
        "resize": images.DEFINITION,
        "mean": IMAGE_MEAN,
        "std": IMAGE_STD,
        "focal_px": spec.focal_px,
        "range_m": (spec.near_m, spec.far_m),
        "trained_range_m": lineage.depth_range_m,
        "bins": loaded.student.bins.count,
        "teacher": lineage.teacher,
        "teacher_licence": lineage.teacher_licence,
        "student": asdict(spec),
        "student_licence": student_licence(spec),
        "dataset": lineage.dataset,
        "cache_id": lineage.cache_id,
        "steps": lineage.steps,
        "checkpoint_sha256": file_sha256(checkpoint),
        "versions": {name: metadata.version(name) for name in ("surround-distill", "torch", "onnx", "onnxscript")},
    }
