"""The processes of `torchrun`: each takes its share of the images, the first one counts together.

torch.distributed is imported only where its environment variables say that there are several processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from wsod.device import pick_device
from wsod.errors import ConfigError, OutputError, ProcessError
from wsod.output import only_writer, write_text

__all__ = ["World", "joined", "own_device", "speaks"]

BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without one after which a process is given up: its host may be gone without a word."""
AGAIN = "Run the same command again, with any number of processes: finished images are not computed again."


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return _size() == 1 or os.environ.get("RANK", "0") == "0"


def own_device(name: str) -> str:
    """`pick_device`, of several processes a GPU each.

    Raises:
        ConfigError: as that does, and for one GPU named for several processes.
    """
    if _size() == 1:
        return pick_device(name)
    kind, _, number = pick_device(name).partition(":")
    if number:
        raise ConfigError("--device", "cuda, of which each process takes its own", repr(name))
    return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}") if kind == "cuda" else kind


class World:
    """One process among `size`; here, the only one.

    Args:
        rank: which one it is.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that counts together and writes results."""
        return self.rank == 0

    def share(self, indices: Sequence[int], batch: int) -> Sequence[int]:
        """The images of this process: whole batches of the data set, in turn.

        A map may depend, in the last bit, on the images it is computed with: batches stay what they are.
        """
        return indices if self.size == 1 else [i for i in indices if i // batch % self.size == self.rank]

    def done(self, images: int) -> int:
        """Say how many images are done here, and hear how many are done in all.

        Raises:
            ProcessError: where another process is gone.
        """
        return images

    def waiting(self) -> Iterator[int]:
        """Until all are here: how many images are done in all, now and then.

        Raises:
            ProcessError: where another process is gone.
        """
        yield from ()

    def wait(self) -> None:
        """Until all are here; see `waiting`."""
        for _ in self.waiting():
            pass

    def others(self, value: Any) -> Iterator[Any]:
        """On the first process, what the others give here, by rank, one at a time; on these, nothing."""
        yield from ()

    def tell(self, value: Any) -> Any:
        """The first process's value, on all."""
        return value

    @contextmanager
    def only_writers(self, folder: Path) -> Iterator[None]:
        """Hold an output folder, together; see `wsod.output.only_writer`."""
        with only_writer(folder):
            yield


class _Several(World):
    """Several processes, over gloo.

    A thread gives signs of life and looks for the others': who waits for a message hears of the sender's end
    by it, whichever way that came. What it writes is small: its sign, how often it waited, its images.
    """

    def __init__(self) -> None:
        self._dist: Any = import_module("torch.distributed")
        dist = self._dist
        try:
            store, rank, size = next(dist.rendezvous("env://"))
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        except (RuntimeError, ValueError) as error:
            hint = "Several hosts may need GLOO_SOCKET_IFNAME, the network interface between them."
            raise ProcessError("torchrun", "the processes to find each other", _line(error), hint) from error
        super().__init__(rank, size)
        self._store = dist.PrefixStore("wsod", store)
        self._waits, self._open, self._done, self._sum = 0, 0, 0, 0
        self._lost, self._words = "", ""
        self._wake, self._over = threading.Event(), threading.Event()
        now = time.monotonic()
        self._heard, self._signs = now, dict.fromkeys(range(size), (0, now))
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=self._guard, daemon=True).start()

    def _stop(self, *_: object) -> None:
        self._lost = self._lost or "the signal to stop, which torchrun sends where another one ended"

    def _live(self) -> None:
        """Give signs of life and look for the others', until this process is done."""
        sign = 0
        while not self._over.is_set():
            sign += 1
            try:
                state = f"{sign} {self._waits} {self._done} {self._open} {self._words}"
                self._store.set(str(self.rank), state)
                if self._words:
                    return
                self._look([self._state(rank) for rank in (range(self.size) if self.first else (0,))])
                self._heard = time.monotonic()
            except RuntimeError as error:  # the store's host is gone
                self._lost = self._lost or f"the first process or host is gone ({_line(error)})"
                return
            self._wake.wait(BEAT / 20 if self._open < self._waits else BEAT)
            self._wake.clear()

    def _guard(self) -> None:
        """End this process where it waits for a message that will not come."""
        while not self._over.wait(BEAT):
            try:
                self._check()
            except ProcessError as error:
                if not self._over.wait(10 * BEAT):
                    print(error, file=sys.stderr, flush=True)
                    os._exit(1)

    def _state(self, rank: int) -> tuple[int, int, int, int, int, str]:
        key = str(rank)
        if not self._store.check([key]):
            return rank, 0, 0, 0, 0, ""
        sign, waits, done, opened, words = self._store.get(key).decode().split(" ", 4)
        return rank, int(sign), int(waits), int(done), int(opened), words

    def _look(self, states: list[tuple[int, int, int, int, int, str]]) -> None:
        now = time.monotonic()
        for rank, sign, *_, words in states:
            before, since = self._signs[rank]
            self._signs[rank] = (sign, now) if sign != before else (before, since)
            if words:
                self._lost = f"process {rank} stopped: {words}"
            elif now - self._signs[rank][1] > SILENCE:
                self._lost = f"no sign of process {rank} for {SILENCE:.0f} s"
        if self.first:
            self._open = min(waits for _, _, waits, *_ in states)
            self._sum = sum(done for _, _, _, done, *_ in states)
        else:
            self._open = states[0][4]

    def _error(self) -> ProcessError:
        return ProcessError(f"process {self.rank}", "all processes to go on", self._lost, AGAIN)

    def _check(self) -> None:
        if time.monotonic() - self._heard > SILENCE:
            self._lost = self._lost or f"no sign of the first host for {SILENCE:.0f} s"
        if self._lost:
            raise self._error()

    def done(self, images: int) -> int:
        self._done = images
        self._check()
        return max(self._sum, images)

    def waiting(self) -> Iterator[int]:
        self._waits += 1
        self._wake.set()
        while self._open < self._waits:
            self._check()
            yield self._sum
            time.sleep(BEAT / 100)
        yield self._sum

    def others(self, value: Any) -> Iterator[Any]:
        self.wait()
        try:
            if not self.first:
                self._dist.send_object_list([value], dst=0)
                return
            for rank in range(1, self.size):
                found: list[Any] = [None]
                self._dist.recv_object_list(found, src=rank)
                yield found[0]
        except RuntimeError as error:
            self._lost = self._lost or _line(error)
            raise self._error() from error

    def tell(self, value: Any) -> Any:
        found = [value]
        try:
            self._dist.broadcast_object_list(found, src=0)
        except RuntimeError as error:
            self._lost = self._lost or _line(error)
            raise self._error() from error
        return found[0]

    @contextmanager
    def only_writers(self, folder: Path) -> Iterator[None]:
        if not self.first:
            self.wait()
        with only_writer(folder, "first" if self.first else "other"):
            if self.first:
                self.wait()
            token = folder / f".{self.tell(uuid4().hex)}.tmp"
            try:
                if self.first:
                    write_text(token, "", held=True)
                self.wait()
                seen = token.exists()
                self.wait()
            finally:
                if self.first:
                    token.unlink(missing_ok=True)
            if not seen:
                raise OutputError(folder, "a folder that all hosts see", "one of this host alone")
            yield

    def leave(self, error: BaseException | None) -> None:
        """Done with the others, or, with an error, tell them why."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if error is not None:
            self._words = self._lost or _line(error)
            self._wake.set()
            self._thread.join(2 * BEAT)
        self._over.set()
        self._wake.set()
        if error is None:
            self._thread.join(2 * BEAT)
            with suppress(RuntimeError):
                self._dist.destroy_process_group()


@contextmanager
def joined() -> Iterator[World]:
    """The processes of `torchrun`, as its environment variables tell; without them, this one alone.

    So is a process whose program has a process group of its own.

    Raises:
        ProcessError: where another one ends before its time.
    """
    if _size() == 1 or ("torch.distributed" in sys.modules and _taken()):
        yield World()
        return
    world = _Several()
    try:
        yield world
    except BaseException as error:
        world.leave(error)
        raise
    world.leave(None)


def _taken() -> bool:
    """Whether there is a process group already."""
    return bool(sys.modules["torch.distributed"].is_initialized())


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:300].rstrip(".") or type(error).__name__
