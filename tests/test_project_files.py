"""The files around the code say what the code, the Makefile and the other files say."""

import os
import re
import tomllib

import yaml
from support.repository import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PACKAGES = ("data_cache", "stages", "pipeline")


def test_the_workflow_calls_the_check_of_every_submission_and_nothing_else():
    (job,) = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
    assert job["timeout-minutes"] == 90
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert min(job["strategy"]["matrix"]["python"], key=lambda version: int(version.split(".")[1])) == oldest


def test_the_hook_before_a_commit_is_the_lint_of_the_makefile():
    (source,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = source["hooks"]
    assert (hook["entry"].split()[-1], hook["pass_filenames"]) == ("lint", False)
    (recipe,) = re.findall(r"^lint:.*\n\t(.*)$", MAKEFILE, re.MULTILINE)
    assert re.findall(r"\$\(BIN\)/(\w+)", recipe) == ["ruff", "ruff", "mypy"]


def test_each_package_ships_its_types():
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (REPOSITORY / package / "py.typed").is_file()
        assert "py.typed" in shipped[package]


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = PROJECT["project"]
    told = ("title", "version", "license")
    assert [citation[key] for key in told] == [project["name"], project["version"], project["license"]]
    (paper,) = citation["references"]
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    assert paper["title"] in readme
    assert paper["identifiers"][0]["value"].replace(":", " ") in readme


def test_make_help_lists_every_target_and_the_stages_in_their_order():
    listed = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    (declared,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert listed == declared.split()
    assert listed[:5] == ["help", "demo", "teacher-cache", "train-student", "eval"]
