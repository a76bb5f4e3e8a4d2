"""The command line: thin. Every command imports what it needs when it runs, so `--help` is instant."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wsod import __version__
from wsod.report.commands import ARCH, COMMANDS, FORMAT, METRICS_ONLY, PUBLISHED, SIZE, TARGET_LAYER
from wsod.report.complete import DATA, MAPS, METHOD, PROTOCOLS
from wsod.report.console import Group, console, progress_bar, warn

__all__ = ["main"]

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsod")
def main() -> None:
    """Attention maps of image classifiers, turned into masks and boxes and scored against the truth."""


def _shared(function: Any) -> Any:
    """The options of `evaluate` and `maps`."""
    for option in reversed(
        [
            click.option(
                "--maps",
                "maps",
                multiple=True,
                required=True,
                metavar="NAME|DIR",
                shell_complete=MAPS,
                help="Map method, a folder of maps, or boxes made elsewhere (COCO results, VOC lines). "
                "Repeat it: a row each.",
            ),
            click.option(
                "--checkpoint",
                type=FILE,
                help="ft.pt of `atcon finetune`, or a plain state dict (with --arch).",
            ),
            ARCH,
            TARGET_LAYER,
            SIZE,
            click.option(
                "--data",
                default="shapes",
                show_default=True,
                metavar="SPEC",
                shell_complete=DATA,
                help="shapes, voc2007:ROOT, voc2012:ROOT, coco:IMAGES,FILE.json, "
                "wsol:METADATA[,IMAGES], folder:DIR, shards:DIR; `wsod list data` has them all.",
            ),
            click.option("--split", help="Split of the data set; its usual evaluation split if not given."),
            click.option(
                "--labels",
                type=click.Choice(["truth", "predicted", "topk", "stored"]),
                default="truth",
                show_default=True,
                help="Classes whose maps are made.",
            ),
            click.option(
                "--limit", type=click.IntRange(min=0), default=0, help="First N images only; 0 = all."
            ),
            click.option(
                "--on-error",
                type=click.Choice(["fail", "skip"]),
                default="fail",
                show_default=True,
                help="At a faulty image: stop, or go on and list it.",
            ),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N."),
            click.option(
                "--tta", metavar="WHAT", help="Maps averaged over versions, such as flip,0.75,1.25 (scales)."
            ),
            click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                default=2,
                show_default=True,
                help="Image decoding threads.",
            ),
        ]
    ):
        function = option(function)
    return function


@main.command()
@_shared
@click.option(
    "--config",
    default="default",
    show_default=True,
    metavar="NAME|FILE.toml",
    shell_complete=PROTOCOLS,
    help="Evaluation protocol; see `wsod list protocols`.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="In place of the protocol's, such as maps.normalise=percentile. Repeat it for several.",
)
@METRICS_ONLY
@click.option(
    "--threshold-from",
    type=FILE,
    metavar="RUN",
    help="Take thresholds from an earlier run (its --out) instead of the best on the evaluated split.",
)
@click.option("--out", type=FOLDER, help="Write result.json and cases.jsonl there.")
@click.option("--save-maps", is_flag=True, help="Keep the maps under OUT/maps.")
@click.option(
    "--save-overlays",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Pictures of the first N cases under OUT/overlays.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap intervals."
)
@click.option("--quiet", is_flag=True, help="Print no table.")
@FORMAT
@PUBLISHED
def evaluate(
    maps: tuple[str, ...], out: Path | None, quiet: bool, style: str, published: bool, **options: Any
) -> None:
    """Make attention maps (or read them), score them by a protocol, print the table.

    \b
    wsod evaluate --maps center                              a first look: needs neither model nor data
    wsod evaluate --maps gradcam --checkpoint ft.pt
    wsod evaluate --maps gradcam --maps center --checkpoint ft.pt --data voc2012:VOCdevkit --out runs/a
    """
    from wsod.distributed import speaks
    from wsod.evaluation import evaluate as run
    from wsod.report.formats import format_results
    from wsod.report.tables import print_results

    with progress_bar("evaluating") as progress:
        result = run(maps, out=out, progress=progress, notice=warn, **options)
    if quiet or not speaks():
        return
    if style != "table":
        click.echo(format_results({"": result}, style, published=published))
        return
    print_results(console(), {"": result}, published=published)
    if out is not None:
        console().print(f"written: {out}/result.json", markup=False)
        if options["save_overlays"]:
            console().print(f"pictures: {out}/overlays", markup=False)


@main.command()
@click.argument("method", shell_complete=METHOD)
@click.option("--checkpoint", type=FILE, required=True, help="ft.pt, or a plain state dict (with --arch).")
@ARCH
@TARGET_LAYER
@SIZE
@click.option(
    "--data",
    default="shapes",
    show_default=True,
    metavar="SPEC",
    shell_complete=DATA,
    help="Images with labels.",
)
@click.option("--split", default="train", show_default=True, help="Not the one that will be scored.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="First N images only; 0 = all.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the fit.")
@click.option("--out", type=FILE, required=True, help="The file; used as --maps METHOD:fit=FILE.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
def fit(method: str, out: Path, settings: tuple[str, ...], **options: Any) -> None:
    """Fit a map method that learns from image labels, such as broadcam.

    \b
    wsod fit broadcam --checkpoint ft.pt --data shapes --out broadcam.pt
    wsod evaluate --maps broadcam:fit=broadcam.pt --checkpoint ft.pt
    """
    from wsod.config import parse_settings
    from wsod.fitting import fit_method

    with progress_bar(f"fitting {method}") as progress:
        fit_method(method, out, options=parse_settings(settings), progress=progress, **options)
    console().print(f"written: {out}; use it as --maps {method}:fit={out}", markup=False)


@main.command("maps")
@_shared
@click.option("--out", type=FOLDER, required=True, help="Each method's maps go to OUT/METHOD.")
@click.option(
    "--save-overlays",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Pictures of the first N cases under OUT/overlays.",
)
def maps_command(maps: tuple[str, ...], out: Path, **options: Any) -> None:
    """Compute and store attention maps only. Run again, it goes on where it stopped.

    \b
    wsod maps --maps gradcam --checkpoint ft.pt --out runs/maps
    """
    from wsod.distributed import speaks
    from wsod.evaluation import compute_maps

    with progress_bar("computing maps") as progress:
        computed, faults = compute_maps(maps, out, progress=progress, notice=warn, **options)
    if not speaks():
        return
    for fault in faults:
        warn(str(fault.error))
    if options["save_overlays"]:
        console().print(f"pictures: {out}/overlays", markup=False)
    console().print(
        f"maps of {computed} images written to {out} ({len(faults)} skipped); score them with: "
        f"{_scoring(out, maps, options)}",
        markup=False,
        soft_wrap=True,
    )


def _scoring(out: Path, methods: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command that scores the maps just written to OUT, of the same images and classes."""
    from wsod.store import expand_map_folders, folder_name

    folders = list(dict.fromkeys(out / folder_name(name) for name in methods))
    if len(folders) > 1 and set(expand_map_folders(str(out))) == set(folders):
        folders = [out]
    # a bare name could be a method's
    named = [f"./{folder}" if len(folder.parts) == 1 else str(folder) for folder in folders]
    command = ["wsod", "evaluate", *(word for name in named for word in ("--maps", name))]
    usual = {"data": "", "split": None, "labels": "truth", "limit": 0, "on_error": "fail"}
    for name in (name for name, value in usual.items() if options[name] != value):
        command += [f"--{name.replace('_', '-')}", str(options[name])]
    return shlex.join(command)


@main.command("list")
@click.argument(
    "kind",
    type=click.Choice(["maps", "metrics", "data", "protocols", "architectures", "heads", "blocks"]),
    required=False,
)
@click.option("--markdown", is_flag=True, help="As Markdown, for documents.")
def list_command(kind: str | None, markdown: bool) -> None:
    """Show what there is: maps, metrics, data, protocols, architectures, heads."""
    from wsod.report.listing import LISTINGS

    for name in [kind] if kind else LISTINGS:
        listing = LISTINGS[name]()
        if markdown:
            click.echo(listing.markdown())
        else:
            listing.print(console())


@main.command()
@click.option(
    "--maps",
    "methods",
    multiple=True,
    default=("cam",),
    show_default=True,
    metavar="NAME",
    shell_complete=METHOD,
)
@click.option("--checkpoint", type=FILE, required=True, help="ft.pt, or a plain state dict (with --arch).")
@ARCH
@TARGET_LAYER
@SIZE
@click.option("--out", type=FILE, required=True, help="The .onnx file.")
def export(methods: tuple[str, ...], checkpoint: Path, out: Path, **options: Any) -> None:
    """Write a classifier and its maps as one ONNX graph, for maps that need no gradient."""
    from wsod.maps.export import export_onnx
    from wsod.models import load_classifier

    outputs = export_onnx(load_classifier(checkpoint, **options), out, methods)
    console().print(f"written: {out}; images → {', '.join(outputs)}", markup=False)


@main.group(cls=Group)
def data() -> None:
    """Data sets: check, export, download."""


@data.command("check")
@click.argument("spec", shell_complete=DATA)
@click.option("--split", help="Split of the data set; its usual evaluation split if not given.")
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Decode every image too.")
def check_command(spec: str, split: str | None, pixels: bool) -> None:
    """Read everything once; report counts, classes and every fault found (exit code 1 where there is one)."""
    from wsod.data import open_dataset
    from wsod.data.check import check
    from wsod.report.listing import check_listing

    dataset = open_dataset(spec, split)
    with progress_bar(f"checking {spec}") as progress:
        report = check(dataset, pixels=pixels, progress=progress)
    check_listing(dataset, report).print(console())
    for fault in report.faults:
        warn(fault)
    if report.faults:
        raise SystemExit(1)


@data.command("export")
@click.argument("spec", shell_complete=DATA)
@click.argument("directory", type=FOLDER)
@click.option("--format", "format_", type=click.Choice(["voc", "coco"]), default="voc", show_default=True)
def export_command(spec: str, directory: Path, format_: str) -> None:
    """Write a data set as ordinary files."""
    from wsod.data.export import export

    with progress_bar(f"exporting {spec}") as progress:
        spec_out = export(spec, format_, directory, progress=progress)
    console().print(f"written: {directory}; read it back as --data {spec_out}", markup=False)


@data.command("download")
@click.argument("name", type=click.Choice(["voc2007", "voc2012"]))
@click.argument("root", type=FOLDER, required=False)
def download_command(name: str, root: Path | None) -> None:
    """Download a data set (torchvision's own download) to ROOT, by default $WSOD_DATA."""
    from wsod.data.download import download

    console().print(f"ready: --data {download(name, root)}", markup=False)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=FILE)
@click.option(
    "--rule",
    type=click.Choice(["max", "mean_std", "otsu", "percentile", "absolute"]),
    default="max",
    show_default=True,
    help="What the threshold is a fraction of.",
)
@click.option("--threshold", type=float, help="Threshold of the rule; each rule has its default.")
@click.option("--components", type=click.Choice(["all", "largest"]), default="all", show_default=True)
@click.option("--min-area", type=float, default=0.0, help="Smallest component kept, in pixels.")
@click.option(
    "--area",
    type=click.Choice(["pixels", "contour"]),
    default="pixels",
    show_default=True,
    help="What large and small mean: pixels, or the area the outline encloses.",
)
@click.option(
    "--merge-iou", type=float, metavar="IOU", help="Merge boxes with more IoU than this; 0 = any overlap."
)
@click.option("--size", type=(int, int), metavar="HEIGHT WIDTH", help="Resize the map to the image first.")
@click.option("--label", help="Only the maps of this label, in files that have several.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "coco", "voc"]),
    default="table",
    show_default=True,
)
@click.option(
    "--annotations", type=FILE, metavar="FILE.json", help="COCO file that says the ids, for --format coco."
)
def boxes(
    paths: tuple[Path, ...], format_: str, label: str | None, annotations: Path | None, **options: Any
) -> None:
    """Turn heatmap files (.npy, .npz, PNG) into boxes.

    \b
    wsod boxes heatmap.npy --threshold 0.2
    """
    from wsod.report.boxes import boxes_of_files, format_boxes, of_label, print_boxes

    found = boxes_of_files(paths, **options)
    if label is not None:
        found = of_label(found, label)
    if format_ == "table":
        print_boxes(console(), found)
    else:
        click.echo(format_boxes(found, format_, annotations))


for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
