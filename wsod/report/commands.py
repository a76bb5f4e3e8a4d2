"""The commands that look at runs and pictures: table, compare, report, show."""

from __future__ import annotations

from pathlib import Path

import click

from wsod.report.console import console, progress_bar, warn

__all__ = ["COMMANDS", "FORMAT", "PUBLISHED"]

FILE = click.Path(path_type=Path)
FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "markdown", "csv", "latex", "json"]),
    default="table",
    show_default=True,
    help="csv and json: fractions in full precision.",
)
PUBLISHED = click.option(
    "--published", is_flag=True, help="Beside them, what others printed for this protocol, with its source."
)
RUNS = click.argument("runs", nargs=-1, required=True, type=FILE)


@click.command()
@RUNS
@FORMAT
@PUBLISHED
def table(runs: tuple[Path, ...], style: str, published: bool) -> None:
    """Print the results of earlier runs as one table."""
    from wsod.report.formats import format_results
    from wsod.report.tables import print_results
    from wsod.results import Result

    results = {str(run): Result.load(run) for run in runs}
    if style == "table":
        print_results(console(), results, published=published)
    else:
        click.echo(format_results(results, style, published=published))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN[:MAPS]...")
@click.option("--metrics", multiple=True, metavar="NAME", help="Only these metrics. Repeat it for several.")
@click.option(
    "--changes", multiple=True, metavar="METRIC", help="List the cases whose score of it changed most."
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many of them.")
@click.option(
    "--resample",
    type=click.Choice(["image", "class"]),
    default="image",
    show_default=True,
    help="What the bootstrap draws: images, or images within their class (needs one class an image).",
)
@click.option("--same-data", is_flag=True, help="Data specs that differ name the same images: go on.")
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@FORMAT
def compare(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    changes: tuple[str, ...],
    top: int,
    resample: str,
    same_data: bool,
    resamples: int,
    seed: int,
    style: str,
) -> None:
    """Differences of runs to the first one, case by case, with intervals and p-values.

    \b
    wsod compare runs/start runs/atcon                      rows of the same maps
    wsod compare runs/a:gradcam runs/b:layercam             these two rows
    wsod compare runs/a                                     every row of a run with its first
    """
    from wsod.comparison import compare as run
    from wsod.report.formats import format_comparison
    from wsod.report.tables import print_changes, print_comparison

    how: dict[str, object] = {"resample": resample, "same_data": same_data}
    comparison = run(
        runs,
        metrics=[*dict.fromkeys([*metrics, *changes])] if metrics else (),
        resamples=resamples,
        seed=seed,
        **how,  # type: ignore[arg-type]
    )
    if style != "table":
        click.echo(format_comparison(comparison, style, changes))
        return
    print_comparison(console(), comparison)
    for one in comparison.differences:
        if one.metric in changes and one.changes:
            print_changes(console(), one, top)


@click.command()
@RUNS
@click.option("--out", type=FILE, required=True, metavar="FILE.html", help="The page, one file.")
@click.option(
    "--cases",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="How many are shown: the worst, the best, others at random.",
)
@click.option("--metric", metavar="NAME", help="By whose case scores; the first metric's if not given.")
@click.option("--data", metavar="SPEC", help="Where the data set is now, if not where the run found it.")
@PUBLISHED
def report(
    runs: tuple[Path, ...], out: Path, cases: int, metric: str | None, data: str | None, published: bool
) -> None:
    """Write runs as one HTML page: scores, curves, classes, and a gallery of cases.

    \b
    wsod evaluate --maps gradcam --checkpoint ft.pt --out runs/a --save-maps
    wsod report runs/a --out report.html

    Pictures need the maps, so evaluate with --save-maps; the page says which are missing.
    """
    from wsod.report.page import write_report

    with progress_bar("drawing cases") as progress:
        warnings = write_report(
            runs, out, cases=cases, metric=metric, data=data, published=published, progress=progress
        )
    for text in warnings:
        warn(text)
    console().print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False)


COMMANDS = (table, compare, report)
