"""Tables in the terminal, laid out for its width: nothing wraps inside a number, a name or a heading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

from wsod.comparison import Comparison, Difference
from wsod.report.console import Text
from wsod.report.lines import Line, heading, lines, percent, short_names, signed
from wsod.report.strata import strata_table
from wsod.results import Result

__all__ = ["print_changes", "print_comparison", "print_results", "print_table"]

Row = tuple[str, str, str]
SHOWN_FAULTS = 10


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table of text below its title, which a table of its own would cut to the columns' width."""
    table = _table()
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD)


def print_results(console: Console, results: Mapping[str, Result], *, published: bool = False) -> None:
    """All rows of all runs: per cent, 95 % intervals below, counts and supervision.

    A row of the table is a row of maps where the terminal is wide enough; else a column is, in as many
    tables as it takes.

    Args:
        console: where to print.
        results: runs by the name they are shown under; a single one is shown without its name.
        published: append the numbers the protocols state as published, said to be not measured here.
    """
    folder, names = short_names(list(results))
    found = lines(dict(zip(names, results.values(), strict=True)), published)
    own = [line for line in found if not line.source]
    origins = list(dict.fromkeys(line.origin for line in own))
    alike = len(origins) <= 1
    title = f"{origins[0]}, per cent" if len(origins) == 1 else "per cent"
    console.print(Text(title, style="bold"), soft_wrap=True)
    if folder:
        console.print(Text(f"runs in {folder}", style="dim"), soft_wrap=True)
    several = len(results) > 1
    wide = [_wide(found, several, alike, notes=notes) for notes in (True, False)]
    fitting = [i for i, table in enumerate(wide) if _fits(console, table)]
    for table in [wide[fitting[0]]] if fitting else _across(console, found, several):
        console.print(table)
    strata = None if several else strata_table(next(iter(results.values())))
    if strata is not None:
        console.print(strata)
    if fitting != [0, 1]:
        _print_notes(console, found, several, alike)
    _print_counts(console, own)
    _print_faults(console, results)


def _fits(console: Console, table: RenderableType) -> bool:
    # measured without the terminal's own limit, which columns would be squeezed into
    free = console.options.update(max_width=100_000)
    return Measurement.get(console, free, table).maximum <= console.width


def _rows(found: Sequence[Line]) -> dict[Row, dict[str, Line]]:
    rows: dict[Row, dict[str, Line]] = {}
    for line in found:
        rows.setdefault(line.row, {})[line.metric] = line
    return rows


def _metrics(found: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.metric for line in found))


def _name(line: Line, several: bool, between: str = "  ") -> Text:
    """The row's name, its run before it where there are several."""
    if line.source:
        return Text(f"{line.maps}{between}{line.data}", style="italic")
    return Text(f"{line.run}{between}{line.maps}" if several else line.maps)


def _note(line: Line) -> str:
    return f"published, not measured here: {line.source}" if line.source else line.supervision


def _cell(line: Line | None) -> Text:
    if line is None or line.value is None:
        return Text("–", style="dim")
    text = Text(percent(line.value), style="italic" if line.source else "")
    if line.low is not None:
        text.append(f"\n{percent(line.low)}–{percent(line.high)}", style="dim")
    return text


def _wide(found: Sequence[Line], several: bool, alike: bool, *, notes: bool) -> Table:
    """A row a row of maps, a column a metric."""
    table, metrics = _table(), _metrics(found)
    if several:
        table.add_column("run", no_wrap=True)
    if not alike and notes:  # rows that must not be compared say so themselves
        table.add_column("data and protocol", no_wrap=True)
    table.add_column("maps", no_wrap=True)
    for metric in metrics:
        table.add_column(Text(heading(metric)), justify="right", no_wrap=True)
    if notes:
        table.add_column("supervision", no_wrap=True)
    measured = True
    for scores in _rows(found).values():
        first = next(iter(scores.values()))
        if measured and first.source:
            table.add_section()
            measured = False
        head = [Text("published" if first.source else first.run)] if several else []
        if not alike and notes:
            head.append(Text("–" if first.source else first.origin))
        cells = [_cell(scores.get(metric)) for metric in metrics]
        tail = [Text(_note(first), style="italic" if first.source else "")] if notes else []
        table.add_row(*head, _name(first, several=False), *cells, *tail)
    return table


def _across(console: Console, found: Sequence[Line], several: bool) -> list[Table]:
    """A column a row of maps, a row a metric; as many tables as the columns need."""
    metrics = _metrics(found)

    def table_of(part: Sequence[Mapping[str, Line]]) -> Table:
        table = _table()
        table.add_column("", no_wrap=True)
        for scores in part:
            name = _name(next(iter(scores.values())), several, "\n")
            table.add_column(name, justify="right", overflow="fold")
        for metric in metrics:
            table.add_row(Text(heading(metric)), *(_cell(scores.get(metric)) for scores in part))
        return table

    parts: list[list[Mapping[str, Line]]] = [[]]
    for scores in _rows(found).values():
        if parts[-1] and not _fits(console, table_of([*parts[-1], scores])):
            parts.append([])
        parts[-1].append(scores)
    return [table_of(part) for part in parts]


def _print_notes(console: Console, found: Sequence[Line], several: bool, alike: bool) -> None:
    """Data, supervision and sources, each once, with the rows they are of."""
    notes: dict[str, list[str]] = {}
    for scores in _rows(found).values():
        first = next(iter(scores.values()))
        note = _note(first) if alike or first.source else f"{first.supervision} ({first.origin})"
        name = first.maps if first.source else _name(first, several).plain
        if name not in notes.setdefault(note, []):
            notes[note].append(name)
    for note, names in notes.items():
        what = note if note.startswith("published") else f"supervision: {note}"
        console.print(Text(f"{', '.join(names)} — {what}", style="dim"))


def _print_counts(console: Console, own: Sequence[Line]) -> None:
    counts: dict[str, list[str]] = {}
    for line in own:
        shown = f"{line.count}" + (f" ({line.skipped} skipped)" if line.skipped else "")
        if shown not in counts.setdefault(line.metric, []):
            counts[line.metric].append(shown)
    parts = [f"{heading(metric)} {' / '.join(sorted(shown))}" for metric, shown in counts.items()]
    console.print(Text("cases: " + ", ".join(parts), style="dim"))
    if any(line.low is not None for line in own):
        console.print(Text("with each score: its 95 % interval, images resampled", style="dim"))
    bare = [heading(metric) for metric in counts if all(x.low is None for x in own if x.metric == metric)]
    if bare:
        console.print(Text(f"no interval: {', '.join(bare)}", style="dim"))


def _print_faults(console: Console, results: Mapping[str, Result]) -> None:
    for run, result in results.items():
        if result.skipped:
            where = f"{run}: " if len(results) > 1 else ""
            console.print(Text(f"{where}{len(result.skipped)} images skipped:", style="yellow"))
            for fault in result.skipped[:SHOWN_FAULTS]:
                console.print(Text(f"  {fault['error']}", style="yellow"))
            if len(result.skipped) > SHOWN_FAULTS:
                console.print(Text("  … all of them in result.json", style="yellow"))


def print_comparison(console: Console, comparison: Comparison) -> None:
    """A table a pair of rows: both scores, the difference with its interval, p-values, cases that changed."""
    console.print(Text(f"{comparison.about}, per cent", style="bold"), soft_wrap=True)
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for one in comparison.differences:
        pairs.setdefault((one.first, one.second), []).append(one)
    for (first, second), differences in pairs.items():
        console.print()
        console.print(Text(f"{first}  →  {second}", style="bold"), soft_wrap=True)
        for break_interval in (False, True):
            table = _differences(differences, break_interval)
            if _fits(console, table):
                break
        console.print(table)
    known = [one for one in comparison.differences if one.p_value is not None]
    for note in comparison.notes:
        console.print(Text(note, style="yellow"))
    texts = [
        "difference: with its 95 % paired bootstrap interval, whole images resampled; thresholds held fixed",
        f"p: sign flip test over images; Holm: corrected for {len(known)} tests",
        "↑ ↓: cases with a higher and a lower score; list them with --changes METRIC",
    ]
    for text in texts:
        console.print(Text(text, style="dim"))


def _differences(differences: Sequence[Difference], break_interval: bool) -> Table:
    table = _table()
    for column in ("", "scores", "difference", "p", "Holm", "↑", "↓", "n"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for one in differences:
        change = Text(signed(one.difference))
        if one.interval:
            low, high = map(signed, one.interval)
            change.append(f"{chr(10) if break_interval else ' '}[{low}, {high}]", style="dim")
        sure = one.adjusted is not None and one.adjusted <= 0.05
        table.add_row(
            Text(heading(one.metric), style="bold" if sure else ""),
            Text(f"{percent(one.before)} → {percent(one.after)}"),
            change,
            *(Text(_p(p), style="bold" if sure else "") for p in (one.p_value, one.adjusted)),
            *(Text(str(number)) for number in (one.raised, one.lowered, one.cases)),
        )
    return table


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}"[value < 1 :]


def print_changes(console: Console, difference: Difference, top: int) -> None:
    """The cases whose score changed most."""
    shown = difference.changes[:top]
    title = f"{heading(difference.metric)}: {len(shown)} of {len(difference.changes)} cases that changed, "
    title += f"{difference.first} → {difference.second}"
    rows = [
        (
            change.image,
            change.label,
            percent(change.before),
            percent(change.after),
            signed(change.after - change.before),
        )
        for change in shown
    ]
    print_table(console, title, ["image", "class", "before", "after", "difference"], rows)
