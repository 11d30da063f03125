"""A real file in a real folder, watched by the real kernel. What must not be told is proven by what comes after it."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from inotify_simple import INotify

from pyproxy import config_file
from pyproxy.config_file import ConfigFile
from pyproxy.configuration import LARGEST
from pyproxy.text_file import read_text

PATIENCE_S = 10.0


class Watch:
    """A running ConfigFile, and what it told."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._told: SimpleQueue[bytes] = SimpleQueue()
        self._is_watched = Event()
        watch = ConfigFile._watch

        def watch_and_tell(file: ConfigFile) -> INotify:
            inotify = watch(file)
            self._is_watched.set()
            return inotify

        monkeypatch.setattr(ConfigFile, "_watch", watch_and_tell)
        Thread(target=ConfigFile(path, self._told.put).run, daemon=True).start()

    def is_watched(self) -> "Watch":
        assert self._is_watched.wait(PATIENCE_S)
        return self

    def next(self) -> bytes:
        try:
            return self._told.get(timeout=PATIENCE_S)
        except Empty:
            pytest.fail("nothing was told")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result = tmp_path / "config"
    result.mkdir()
    return result


@pytest.fixture
def path(folder: Path) -> Path:
    result = folder / "config.conf"
    result.write_bytes(b"old")
    return result


def in_place(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def by_renaming(path: Path, text: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.write_bytes(text)
    new.rename(path)


def anew(path: Path, text: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(text)


def by_a_link(path: Path, text: bytes) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / text.decode()).write_bytes(text)
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere / text.decode())


WAYS = pytest.mark.parametrize("write", [in_place, by_renaming, anew, by_a_link])
Write = Callable[[Path, bytes], None]


@WAYS
def test_a_change_is_told_with_the_new_content(path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    for text in (b"new", b"newer"):
        write(path, text)
        assert watch.next() == text


@WAYS
def test_the_same_content_again_is_not_told(path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    write(path, b"old")
    path.touch()
    by_renaming(path, b"new")
    assert watch.next() == b"new"


def test_what_changed_before_it_was_watched_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ConfigFile(path, (told := SimpleQueue[bytes]()).put)
    path.write_bytes(b"new")
    Thread(target=file.run, daemon=True).start()
    assert told.get(timeout=PATIENCE_S) == b"new"


def test_a_file_that_vanished_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    path.rename(path.with_name("away"))
    by_renaming(path.with_name("..data"), b"a swap, at which the file is looked for")
    time.sleep(0.05)
    by_renaming(path, b"old")
    by_renaming(path, b"new")
    assert watch.next() == b"new"


def test_a_file_that_was_not_there_is_told_when_it_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(folder / "config.conf", monkeypatch).is_watched()
    by_renaming(folder / "config.conf", b"new")
    assert watch.next() == b"new"


def test_a_file_that_is_empty_for_a_moment_is_not_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    path.write_bytes(b"")
    by_renaming(path.with_name("other"), b"other")
    by_renaming(path, b"new")
    assert watch.next() == b"new"


def test_a_file_is_told_when_it_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    by_renaming(path, b"first")
    assert watch.next() == b"first"  # so that it is not read once more as the last step of the start
    path.unlink()
    with path.open("wb", buffering=0) as file:
        file.write(b"ha")
        time.sleep(0.05)  # in which it would be read
        file.write(b"lf")
    assert watch.next() == b"half"


def test_other_files_are_not_even_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    looks: list[Path] = []

    def look(path: Path, most: int) -> bytes:
        looks.append(path)
        return read_text(path, most)

    monkeypatch.setattr("pyproxy.config_file.read_text", look)
    for number in range(99):
        (path.parent / f"{number}.conf").write_bytes(b"x")
    path.write_bytes(b"new")
    assert watch.next() == b"new"
    assert len(looks) <= 3  # the one of the start may be among them


def publish(folder: Path, version: str, text: bytes) -> None:
    """As kubelet does: a new folder, a new link to it, renamed over ``..data``, and the old folder removed."""
    (folder / version).mkdir()
    (folder / version / "config.conf").write_bytes(text)
    old = (folder / "..data").resolve()
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")
    if not (folder / "config.conf").is_symlink():
        (folder / "config.conf").symlink_to("..data/config.conf")
    if old != folder / "..data":
        shutil.rmtree(old)


def test_a_mounted_config_map_changes_by_a_swap_of_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(folder, "..2026_1", b"old")
    watch = Watch(folder / "config.conf", monkeypatch).is_watched()
    for version, text in (("..2026_2", b"new"), ("..2026_3", b"newer")):
        publish(folder, version, text)
        assert watch.next() == text
    publish(folder, "..2026_4", b"newer")
    publish(folder, "..2026_5", b"newest")
    assert watch.next() == b"newest"


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("away"))])
def test_a_folder_that_vanishes_is_waited_for(
    path: Path, vanish: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "_TRY_AGAIN_S", 0.01)
    watch = Watch(path, monkeypatch).is_watched()
    vanish(path.parent)
    path.parent.mkdir()
    path.write_bytes(b"new")
    assert watch.next() == b"new"
    by_renaming(path, b"newer")
    assert watch.next() == b"newer"


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_folder, make_pipe, make_loop])
def test_what_is_no_file_is_waited_out(
    path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    path.unlink()
    make(path)
    path.rename(path.with_name("away"))
    by_renaming(path, b"new")
    assert watch.next() == b"new"


def test_of_a_file_without_end_no_more_is_told_than_is_too_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(path, monkeypatch).is_watched()
    by_renaming(path, b"x" * (LARGEST + 9))
    assert len(watch.next()) == LARGEST + 1


def test_a_kernel_without_watches_left_does_not_hide_a_change(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """fs.inotify.max_user_instances is 128 on many a node, and its pods share it."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            path.write_bytes(b"new")

    told: SimpleQueue[bytes] = SimpleQueue()
    monkeypatch.setattr(config_file, "INotify", refuse)
    monkeypatch.setattr(config_file, "time", SimpleNamespace(sleep=pause))

    class Enough(Exception):
        pass

    def tell(text: bytes) -> None:
        told.put(text)
        raise Enough

    with pytest.raises(Enough):
        ConfigFile(path, tell).run()
    assert told.get_nowait() == b"new"
    assert len([message for message in caplog.messages if "can't be watched" in message]) == 1


def test_what_a_link_leads_to_in_another_folder_is_looked_at_now_and_then(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "_LOOK_ANYWAY_MS", 10)
    (tmp_path / "real.conf").write_bytes(b"old")
    (folder / "config.conf").symlink_to(tmp_path / "real.conf")
    watch = Watch(folder / "config.conf", monkeypatch).is_watched()
    (tmp_path / "real.conf").write_bytes(b"new")
    assert watch.next() == b"new"


def test_a_file_may_be_named_relative_to_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    watch = Watch(Path(path.name), monkeypatch).is_watched()
    by_renaming(path, b"new")
    assert watch.next() == b"new"
