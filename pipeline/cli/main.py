"""The command `surround`, with its verbs in the order of use."""

import warnings

import click

from data_cache.errors import SurroundWarning
from pipeline.cli.cache import cache, rig, weights
from pipeline.cli.stages import calibrate, doctor, evaluate, fit_bins, teacher_cache, train_student
from pipeline.cli.students import ablate, compare, export, predict, report, zero_shot
from stages.compute.waiting import wait_briefly


class _InOrder(click.Group):
    """A group that lists its verbs in the order of use, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="surround-distill", prog_name="surround")
def main() -> None:
    """Metric depth for full-surround cameras, distilled offline from a depth foundation model.

    RECIPE is a built-in name (demo, evidence, pandaset, evidence_pandaset, nuscenes, ddad, rig) or a TOML file.

    Exit codes: 0 done; 1 failed; 2 bad usage, recipe or data folder; 3 done, but some frames were quarantined; 75
    stopped by a signal after saving, run the same command again.
    """
    wait_briefly()
    usual = warnings.formatwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        ours = issubclass(category, SurroundWarning)
        return f"Warning: {message}\n" if ours else usual(message, category, filename, lineno, line)

    warnings.formatwarning = shown


for _verb in (doctor, fit_bins, teacher_cache, train_student, calibrate, evaluate, report, compare, predict, export,
              zero_shot, ablate, cache, rig, weights):  # fmt: skip
    main.add_command(_verb)
