"""Maps kept on disk while a run computes them, so that one that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsod import __version__
from wsod.config import plain
from wsod.distributed import World
from wsod.errors import MapError, WsodError
from wsod.pipeline import Fault, iterate_maps
from wsod.request import Run
from wsod.results import Result
from wsod.store import MapStore, folder_name
from wsod.types import AttentionMaps, Sample

__all__ = ["KeptMaps", "computed_maps", "made_for"]

Item = tuple[Sample, dict[str, Any]]
OPTIONS = ("data", "labels", "tta", "size", "target_layer")
"""Of a request: those a map depends on."""


class KeptMaps:
    """The stores a run writes, one a method.

    Args:
        run: what is computed.
        folder: each method's maps go to FOLDER/METHOD.
        names: the methods whose maps are kept.
        world: the processes that write them together; None = this one alone.
        frame: side of the square that controls are made at; 0 = the image's own size.
        anew: start over where maps made otherwise are there, instead of refusing, and call this before.
        notice: called with a sentence for each damaged file found.

    Raises:
        ConfigError: where maps made otherwise are there.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        names: Collection[str],
        world: World | None = None,
        *,
        frame: int = 0,
        anew: Callable[[], object] | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.run, self.folder, self._notice, self._frame = run, folder, notice, frame
        self._world = world = world or World()
        if not world.first:
            world.wait()  # the first one has put in order what is there
        classes, images = len(run.classes), len(run.indices)
        self.stores = {
            name: MapStore(folder / folder_name(name), classes, images=images, rank=world.rank)
            for name in names
        }
        if world.first:
            for name, store in self.stores.items():
                store.begin(self._made(name), anew=anew)
            world.wait()
        self._batch = -1

    def _made(self, name: str) -> dict[str, Any]:
        """All that a map of that method depends on, except the machine."""
        request, classifier = self.run.request, self.run.classifier
        method = self.run.methods[name]
        about = {} if method.is_control or classifier is None else plain(classifier.about())
        about.pop("loaded", None)  # where the file lies makes no difference
        options = {key: getattr(request, key) for key in OPTIONS}
        made: dict[str, Any] = {"wsod": __version__, "maps": name, "supervision": self.run.supervision(name)}
        if method.is_control and self._frame:
            made["frame"] = self._frame
        if fit := getattr(method.options.get("fit"), "sha256", ""):
            made["fit"] = fit
        return {**made, "checkpoint": about, **options, "split": self.run.dataset.split}

    def has(self, image_id: str, names: Collection[str]) -> bool:
        """Whether these methods' maps of that image are there, whole."""
        whole = bool(names) and all(self.stores[name].has(image_id) for name in names)
        for store in self.stores.values():
            while store.damaged:
                path = store.damaged.pop()
                if self._notice:
                    self._notice(
                        f"{path}: expected the file that was written, got another. It is made again."
                    )
        return whole

    def batches_to_make_again(self, indices: Iterable[int]) -> set[int]:
        """The images in a batch with one whose maps are there no more, or damaged.

        In another batch, its last bits could be others.
        """
        ids, size = self.run.dataset.ids, self.run.request.batch_size
        lost = {i // size for i in indices if any(ids[i] in store.lost for store in self.stores.values())}
        return {i for i in indices if i // size in lost}

    def read(self, sample: Sample, names: Collection[str]) -> dict[str, AttentionMaps]:
        """These methods' maps of an image that `has` them.

        Raises:
            MapError: where the image's annotations are no longer those the maps were made for.
        """
        found = {name: self.stores[name].read(sample) for name in names}
        for name, maps in found.items():
            if self.run.request.labels == "truth" and maps.labels.tolist() != list(sample.classes):
                got = f"maps of {maps.labels.tolist()}, of other annotations"
                hint = f"Delete {self.folder} and run again."
                raise MapError(f"{self.stores[name].folder}, {sample.image_id}", "its labels", got, hint)
        return found

    def add(self, index: int, found: Mapping[str, Any]) -> None:
        """An image's maps. They count when the batch is through, all of them or none.

        The maps of an image may depend, in the last bit, on the images it is computed with: a run that goes
        on makes the batch again.
        """
        batch = index // self.run.request.batch_size
        if batch != self._batch:
            self.commit()
        self._batch = batch
        for name, store in self.stores.items():
            if name in found and not store.listed(found[name].image_id):
                store.write(found[name])

    def commit(self) -> None:
        """What was written counts."""
        for store in self.stores.values():
            store.commit()

    def finish(self) -> None:
        """Write the manifests, once all are here: the stores are complete."""
        self.commit()
        self._world.wait()
        if not self._world.first:
            return
        run = self.run
        for name, store in self.stores.items():
            about = {"schema": 1, "maps": name, "supervision": run.supervision(name)}
            about |= {"images": len(run.indices), "classes": run.classes, "config": plain(run.request)}
            store.finish(about)


def made_for(result: Result, folder: Path) -> bool:
    """Whether the maps kept beside a result are those it was scored on: another run may have begun since."""
    try:
        made = MapStore(folder, 0).made
    except WsodError:
        return True  # named where they are read
    if made is None:
        return folder.is_dir()
    keys = (*OPTIONS, "split")
    there, here = (
        dict(about or {}) for about in (made.get("checkpoint"), result.provenance.get("checkpoint"))
    )
    same = not there or {**there, "loaded": ""} == {**here, "loaded": ""}  # controls are made without
    return same and all(made.get(key) == result.config.get(key) for key in keys)


def computed_maps(
    run: Run, indices: Sequence[int], *, frame: int = 0, kept: KeptMaps | None = None
) -> Iterator[Item | Fault]:
    """Every image, in order, with the maps of the run's methods: those kept are read, the others computed.

    Controls are made anew: they cost nothing, and some say more than a file holds.
    """
    request, methods = run.request, run.methods
    costly = [name for name, method in methods.items() if not method.is_control]
    cheap = {name: method for name, method in methods.items() if method.is_control}
    done: set[int] = set()
    if kept is not None and costly:
        done = {index for index in indices if kept.has(run.dataset.ids[index], costly)}
        done -= kept.batches_to_make_again(indices)
    again = iterate_maps(run.dataset, [i for i in indices if i in done], cheap, None, frame=frame)
    computed = iterate_maps(
        run.dataset,
        [index for index in indices if index not in done],
        methods,
        run.classifier,
        labels=request.labels,
        device=run.device,
        batch_size=request.batch_size,
        threads=request.threads,
        frame=frame,
        tta=request.tta,
    )
    for index in indices:
        if index not in done or kept is None:
            yield next(computed)
            continue
        item = next(again)
        if isinstance(item, Fault):
            yield item
            continue
        try:
            found = {**item[1], **kept.read(item[0], costly)}
            item = item[0], {name: found[name] for name in methods if name in found}
        except WsodError as error:
            yield Fault(item[0].image_id, error)
        else:
            yield item
