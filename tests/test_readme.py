"""Every command that the pages show is one that the program has, and every link leads somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli.main import main
from stages.compute.progress import QUIET

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data_cache/RIG_FOLDER.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
COMMAND = re.compile(r"^(?: {4}|\$ )+(?:\$ )?((?:torchrun .* -- )?surround |make )(.*)$", re.MULTILINE)
INLINE = re.compile(r"`(surround|make) ([a-z][^`]*)`")


def commands(page):
    """Program and arguments of each command, comments and what is printed beside it left out."""
    text = page.read_text().replace("\\\n", " ")
    for program, rest in COMMAND.findall(text):
        yield program.split()[-1], re.split(r"\s#|(?<=\S) {3,}(?=\S)|; do |; done", rest)[0]
    for program, rest in INLINE.findall(text):
        yield program, " ".join(rest.split())


ALL = sorted({(page.name, program, rest) for page in PAGES for program, rest in commands(page)})


def parsed(command, name, arguments, parent=None):
    with command.make_context(name, arguments, parent) as context:
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args]
        if rest:
            found, sub, rest = command.resolve_command(context, rest)
            parsed(sub, found, rest, context)


@pytest.mark.parametrize(("page", "program", "rest"), ALL, ids=lambda value: value[:60])
def test_a_command_that_a_page_shows_exists_with_its_options(page, program, rest, monkeypatch):
    monkeypatch.setenv(QUIET, "0")
    arguments = shlex.split(rest.replace("...", ""))
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
        assert set(targets) <= known
        return
    if len(arguments) <= 2 and not any(word.startswith("-") for word in arguments):
        # A verb that is named, not called.
        command = main
        for word in arguments[: 1 + (arguments[0] in ("cache", "rig"))]:
            command = command.commands[word]
        return
    parsed(main, "surround", arguments)


def test_the_pages_show_what_there_is():
    shown = {rest.split()[0] for _, program, rest in ALL if program == "surround" and not rest.startswith("-")}
    assert shown >= set(main.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, target
