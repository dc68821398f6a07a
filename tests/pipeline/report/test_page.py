from dataclasses import replace

from markupsafe import Markup
from support.reports import PROVENANCE, REPORT, Page

from pipeline.report.markdown import Table
from pipeline.report.one_run import html_report
from pipeline.report.page import Headline, Section, page, table_section
from pipeline.report.results_file import ReportFile

VIEWER = Section(
    "cloud", "Points", Markup("<canvas id=cloud></canvas>"), (".cloud { color: red }",), ("let cloud = 1;",)
)


def saved(tmp_path, text):
    (tmp_path / "page.html").write_text(text)
    return Page(tmp_path / "page.html")


def test_a_page_is_made_of_sections_with_their_own_styles_and_scripts(tmp_path):
    again = replace(VIEWER, name="second", title="More points")
    made = saved(tmp_path, page("Title <1>", "Summary", [Headline("AbsRel", "1 <", "detail")], [VIEWER, again]))
    assert made.headings == ["Points", "More points"]
    assert [attrs["href"] for tag, attrs in made.tags if tag == "a"] == ["#cloud", "#second"]
    assert made.raw.count("let cloud = 1;") == made.raw.count(".cloud { color: red }") == 1
    assert "<canvas id=cloud></canvas>" in made.raw
    assert {"Title <1>", "1 <"} <= set(made.texts)


def test_a_page_without_scripts_allows_none(tmp_path):
    made = page("Title", "", [], [table_section(Table("Numbers", "", ("a", "b"), (("1", "2"),)), "numbers")])
    assert "script-src &#39;none&#39;" in made or "script-src 'none'" in made
    assert "<script" not in made


def test_a_report_takes_more_sections(tmp_path):
    """As a viewer of point clouds would be one."""
    made = saved(tmp_path, html_report(ReportFile(tmp_path, REPORT, PROVENANCE), (), None, [VIEWER]))
    assert made.headings[-3:] == ["Points", "Quarantined frames", "Provenance"]
