"""infoq-onnx score"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import FilePath


class ScoreCommand(click.Command):
    """A command with the options of all installed criteria. Plug-ins are loaded only when the command is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the common options and the options of all criteria."""
        return [*super().get_params(ctx), *_criteria_options()]


def _criteria_options() -> list[click.Option]:
    """Create one option for each name. Criteria with an option of the same name share it."""
    from infoq_onnx.pipeline.scoring import criteria

    found: dict[str, click.Option] = {}
    for criterion in criteria():
        for name, (default, text) in criterion.options.items():
            dashed = name.replace("_", "-")
            declared = f"--{dashed}/--no-{dashed}" if isinstance(default, bool) else f"--{dashed}"
            shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
            told = f"{criterion.name}: {text} [{shown}]"
            if name in found:
                told = f"{found[name].help} {told}"
            # None: the option was not given
            kind = None if isinstance(default, bool) else type(default)
            found[name] = click.Option([declared, f"option_{name}"], default=None, type=kind, help=told)
    return list(found.values())


@click.command(
    cls=ScoreCommand,
    short_help="Score the layers by another criterion, without a trial.",
    epilog="Example: infoq-onnx score --criterion infoq --debias",
)
@click.argument("analysis", type=FilePath(), required=False)
@click.option("--criterion", required=True, help="Criterion that scores the layers; infoq-onnx criteria lists them.")
@click.option("--model", type=FilePath(), help="Where the float model is now, if it moved.")
@click.option("--calib", type=FilePath(), help="Where the calibration data is now, if it moved.")
@click.option("--classes", type=FilePath(), help="Where the file of class names is now, if it moved.")
@click.option("--memory", metavar="SIZE", help="Approximate memory for images, such as 2GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON instead of a table.")
def score(analysis: Path | None, as_json: bool, **options: Any) -> None:
    """Score every layer of ANALYSIS by a criterion, and keep the scores there for allocate.

    ANALYSIS is the folder that analyze made; by default the newest one here. No trial is run: a criterion that looks at
    activations takes one pass over the images, all others take none.
    """
    from infoq_onnx import pipeline
    from infoq_onnx.analyses import find_analysis, read_analysis
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    own = {
        name.removeprefix("option_"): value
        for name in list(options)
        if name.startswith("option_") and (value := options.pop(name)) is not None
    }
    options = {name: value for name, value in options.items() if not name.startswith("option_")}
    if analysis is None:
        analysis = find_analysis()
        click.echo(f"using the analysis {analysis}", err=True)
    with ConsoleReporter() as reporter:
        found = pipeline.score(analysis, options=own, reporter=reporter, **options)
    if as_json:
        show(to_json(found))
        return
    for table in [
        *([tables.observers(found)] if found.observers else []),
        tables.score_table(read_analysis(analysis), found),
    ]:
        show(table)
    show(f"{analysis} is ready for: infoq-onnx allocate --criterion {found.criterion}")
