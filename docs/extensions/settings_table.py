"""The directive `settings`: a table of every setting of a part, from the code that reads it."""

import dataclasses

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Settings(SphinxDirective):
    """The settings whose names begin with the argument, such as `train`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Gives the table, parsed as the page is."""
        from experiments import config

        lines = ["| setting | default | type; meaning |", "|---|---|---|"]
        for setting in config.settings():
            part, _, _ = setting.name.rpartition(".")
            if part == self.arguments[0].removeprefix("-"):
                lines.append(_row(setting))
        if len(lines) == 2:
            raise self.error(f"there are no settings of {self.arguments[0]!r}")
        table = nodes.container()
        self.state.nested_parse(StringList(lines), self.content_offset, table)
        return table.children


def _row(setting) -> str:
    is_open = setting.value is dataclasses.MISSING
    value = "" if is_open else f"`{setting.value!r}`"
    meaning = f"{setting.type}; {setting.meaning}".replace("|", "\\|")
    return f"| `{setting.name}` | {value} | {meaning} |"


def setup(app: Sphinx) -> dict[str, bool]:
    """Gives Sphinx the directive."""
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
