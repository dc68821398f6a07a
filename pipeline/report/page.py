"""Makes the page of a report: sections of HTML with their styles and scripts, in one file that loads nothing."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.report.markdown import Table

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: of its anchor: letters, digits and dashes, unique on the page.
        title: heading.
        body: HTML below the heading.
        styles, scripts: CSS and JavaScript that it needs; what several sections share is included once. Scripts run
            when the page is parsed, in the order of the sections. They may load nothing: pictures are data URIs.
        wide: takes the whole width of the page.
    """

    name: str
    title: str
    body: Markup
    styles: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    wide: bool = True


@dataclass(frozen=True)
class Headline:
    """A number in large type."""

    label: str
    value: str
    detail: str


def page(
    title: str, summary: str, headlines: Sequence[Headline], sections: Sequence[Section], lead: Markup | None = None
) -> str:
    """One HTML file: title, lead, headlines, links to the sections, then the sections in order.

    The lead is HTML that needs no styles and scripts but those of the sections. The content security policy allows no
    request, and no script but those of the sections.
    """
    styles = dict.fromkeys([asset("page.css"), *(style for section in sections for style in section.styles)])
    scripts = dict.fromkeys(script for section in sections for script in section.scripts)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return str(
        render(
            "page.html.j2",
            title=title,
            summary=summary,
            lead=lead or "",
            headlines=headlines,
            sections=sections,
            styles=[Markup(style) for style in styles],
            scripts=[Markup(script) for script in scripts],
            script_sources=" ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'",
        )
    )


def table_section(table: Table, name: str) -> Section:
    """A table as a section, with bars beside the numbers that have them."""
    body = render("table.html.j2", table=table)
    return Section(name, table.title, body, wide=len(table.header) > 4 or not table.numeric)


def render(template: str, **values: object) -> Markup:
    """Fill in a template of pipeline/report/templates; texts are escaped, `Markup` is not."""
    return Markup(_environment().get_template(template).render(**values))


def asset(name: str) -> str:
    """A style or script of pipeline/report/templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8").strip()


@cache
def _environment() -> jinja2.Environment:
    # Frame ids come from outside, and the suffix of the templates does not switch escaping on by itself.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
