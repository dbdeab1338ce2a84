"""The part of a benchmark's page that compares it with another one: put into the page that is there, in the place of an older one."""

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from visiontune.errors import readable

TEMPLATE = (Path(__file__).parent / "against.html").read_text()
PLACE = re.compile(r"<!-- against -->.*?<!-- /against -->", re.DOTALL)  # in benchmark.html


def put_against(
    page: Path,
    *,
    file: str,
    summary: Sequence[str],
    machines: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    rule: str,
    lines: Sequence[str],
) -> None:
    """Write it into `report.html`.

    Args:
        page: of a benchmark.
        file: the other table.
        summary: what a reader needs first.
        machines: what differs between the machines, in words.
        columns: headers.
        rows: cells, all text; a click sorts them.
        rule: what is taken for noise.
        lines: what else there is to say.
    """
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    text = template.render(file=file, summary=summary, machines=machines, columns=columns, rows=rows, rule=rule, lines=lines)
    part = f"<!-- against -->{readable(text)}<!-- /against -->"
    page.write_text(PLACE.sub(lambda _: part, page.read_text(), count=1))
