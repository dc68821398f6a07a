"""The licences of what a student was made from: this program, starting weights, teacher, data."""

from importlib import metadata

from pipeline.weights.catalog import KNOWN, UNKNOWN_LICENCE
from stages.student.checkpoint import Lineage
from stages.student.encoder import ENCODERS
from stages.student.spec import StudentSpec

DATA_LICENCES = {
    "synthetic": "Apache-2.0",  # drawn by this program
    "pandaset": "CC-BY-4.0",
    "nuscenes": "CC-BY-NC-SA-4.0",
    "ddad": "CC-BY-NC-SA-4.0",
}
"""SPDX identifier by data set; PandaSet and nuScenes add terms of use of their own."""


def student_licence(spec: StudentSpec) -> str:
    """SPDX expression of this program's licence and of that of the weights its encoder started from."""
    started_from = starting_weights(spec)
    licences = [str(metadata.metadata("surround-distill")["License-Expression"])]
    licences += [KNOWN[started_from].licence] if started_from in KNOWN else []
    return " AND ".join(dict.fromkeys(licences))


def starting_weights(spec: StudentSpec) -> str | None:
    """Name of the weights that the encoder started from; None if they were random."""
    return ENCODERS[spec.encoder].weights if spec.pretrained else None


def data_licence(lineage: Lineage) -> str | None:
    """Licence of the data set that a student learnt from; None if this program does not know it."""
    return DATA_LICENCES.get(lineage.dataset)


def all_licences(spec: StudentSpec, lineage: Lineage) -> tuple[str, ...] | None:
    """SPDX identifiers of the licences of everything a student was made from, each once; None if one is not known."""
    found = [*student_licence(spec).split(" AND "), lineage.teacher_licence, data_licence(lineage)]
    known = [one for one in found if one not in (None, "", UNKNOWN_LICENCE)]
    return tuple(dict.fromkeys(map(str, known))) if len(known) == len(found) else None
