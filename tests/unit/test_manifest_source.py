"""A real folder, watched by the real kernel. What must not happen is proven by what comes after it."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from inotify_simple import INotify

from pyproxy.manifest_source import ManifestSource, PathError
from pyproxy.objects import Delete, Event, Service, Upsert

PATIENCE_S = 10.0


def text_of(name: str, port: int, **spec: str) -> str:
    further = "".join(f", {field}: {value}" for field, value in spec.items())
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]{further}}}\n"
    )


def save(path: Path, **services: int) -> None:
    """As an editor does that writes in place."""
    path.write_text("".join(text_of(name, port) for name, port in services.items()))


def save_over(path: Path, **services: int) -> None:
    """As an editor does that renames a new file over the old one."""
    save(path.with_name(path.name + ".new"), **services)
    path.with_name(path.name + ".new").rename(path)


class Watch:
    """A running source, and what is in force by what it delivered: ports by name of service."""

    def __init__(self, path: Path) -> None:
        self._batches: SimpleQueue[list[Event]] = SimpleQueue()
        self.in_force: dict[str, int] = {}
        self.deleted: list[str] = []
        self._marks = 0
        self.source = ManifestSource(path, self._batches.put)
        Thread(target=self.source.run, daemon=True).start()
        self.first = self.take()

    def take(self) -> list[Event]:
        batch = self._batches.get(timeout=PATIENCE_S)
        for event in batch:
            if isinstance(event, Delete):
                self.deleted.append(event.key.name)
                del self.in_force[event.key.name]
            elif isinstance(event.object, Service):
                self.in_force[event.object.key.name] = (event.object.spec.ports or ())[0].port
        return batch

    def until(self, **expected: int) -> None:
        """Fails if these do not come in force in time."""
        try:
            while self.in_force != expected:
                self.take()
        except Empty:
            pytest.fail(f"in force is {self.in_force}, not {expected}")

    def still(self, folder: Path, **expected: int) -> None:
        """Whatever happened before now has been seen and has left this in force, without a deletion."""
        self._marks += 1
        mark = folder / f"zz-mark-{self._marks}.yaml"
        save_over(mark, mark=self._marks)
        self.until(**expected, mark=self._marks)
        assert self.deleted == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result = tmp_path / "manifests"
    result.mkdir()
    return result


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [str(getattr(record, "reason", record.getMessage())) for record in caplog.records]


def test_the_first_batch_holds_everything(folder: Path) -> None:
    save(folder / "a.yaml", a=1)
    save(folder / "b.yml", b=2, c=3)
    (folder / "d.json").write_text(
        '{"apiVersion":"v1","kind":"Service","metadata":{"name":"d"},"spec":{"ports":[{"port":4}]}}'
    )
    watch = Watch(folder)
    assert watch.in_force == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_an_empty_folder_is_delivered_as_such_and_filled_later(folder: Path) -> None:
    watch = Watch(folder)
    assert watch.first == []
    save(folder / "a.yaml", a=1)
    watch.until(a=1)


@pytest.mark.parametrize("write", [save, save_over], ids=["in place", "by renaming"])
def test_a_saved_file_is_read_again(folder: Path, write: Callable[..., None]) -> None:
    write(folder / "a.yaml", a=1, b=1)
    watch = Watch(folder)
    write(folder / "a.yaml", a=2, c=3)
    watch.until(a=2, c=3)


def test_only_what_differs_is_delivered(folder: Path) -> None:
    save(folder / "a.yaml", a=1, b=1)
    watch = Watch(folder)
    save(folder / "a.yaml", a=1, b=2)
    assert [event.object.key.name for event in watch.take() if isinstance(event, Upsert)] == ["b"]


def test_a_file_that_is_touched_delivers_nothing(folder: Path) -> None:
    save(folder / "a.yaml", a=1)
    watch = Watch(folder)
    (folder / "a.yaml").touch()
    save_over(folder / "a.yaml", a=1)
    save_over(folder / "b.yaml", b=1)
    assert [event.object.key.name for event in watch.take() if isinstance(event, Upsert)] == ["b"]


def test_a_removed_file_takes_its_objects_along(folder: Path) -> None:
    save(folder / "a.yaml", a=1, b=1)
    save(folder / "c.yaml", c=1)
    watch = Watch(folder)
    (folder / "a.yaml").unlink()
    watch.until(c=1)
    save(folder / "a.yaml", a=1, b=1)
    watch.until(a=1, b=1, c=1)


def test_a_renamed_file_keeps_its_objects_in_force(folder: Path) -> None:
    save(folder / "a.yaml", a=1)
    watch = Watch(folder)
    (folder / "a.yaml").rename(folder / "z.yaml")
    batch = watch.take()
    assert isinstance(batch[-1], Upsert)
    assert watch.in_force == {"a": 1}


def test_many_files_at_once_all_arrive(folder: Path) -> None:
    watch = Watch(folder)
    for number in range(1, 301):
        save(folder / f"{number}.yaml", **{f"s{number}": number})
    watch.until(**{f"s{number}": number for number in range(1, 301)})


@pytest.mark.parametrize("name", [".a.yaml", "a.yaml~", ".#a.yaml", "a.yaml.swp", "a.txt", "yaml", "a.yaml.new"])
def test_other_files_are_not_read(folder: Path, name: str) -> None:
    save(folder / name, a=1)
    watch = Watch(folder)
    save(folder / name, a=2)
    watch.still(folder)


@pytest.mark.parametrize("broken", ["kind: [", "\0", "hello", "kind: Service\n\tmetadata:", '{"kind":'], ids=ascii)
def test_a_broken_file_keeps_its_last_good_version(
    folder: Path, broken: str, complaints: Callable[[], list[str]]
) -> None:
    save(folder / "a.yaml", a=1, b=1)
    watch = Watch(folder)
    (folder / "a.yaml").write_text(text_of("a", 2) + broken if broken[0] != "{" else broken)
    watch.still(folder, a=1, b=1)
    assert any("its last good version stays in force" in complaint for complaint in complaints())
    save(folder / "a.yaml", a=3)
    watch.until(a=3, mark=1)


def test_a_broken_file_at_the_start_does_not_keep_the_others_out(
    folder: Path, complaints: Callable[[], list[str]]
) -> None:
    (folder / "a.yaml").write_text("kind: @x")
    save(folder / "b.yaml", b=1)
    assert Watch(folder).in_force == {"b": 1}
    assert any(complaint.startswith("line 1: ") for complaint in complaints())


def test_a_refused_object_keeps_its_last_good_version_while_others_move_on(
    folder: Path, complaints: Callable[[], list[str]]
) -> None:
    save(folder / "a.yaml", a=1, b=1, c=1)
    watch = Watch(folder)
    (folder / "a.yaml").write_text(text_of("a", 70000) + text_of("b", 2))
    watch.until(a=1, b=2)
    said = "line 5: Service default/a: spec.ports[0].port: 70000 is not a port (1 to 65535)"
    assert f"{said}; its last good version stays in force" in complaints()


def test_a_refused_object_without_last_good_version_is_said_to_be_refused(
    folder: Path, complaints: Callable[[], list[str]]
) -> None:
    (folder / "a.yaml").write_text(text_of("a", 70000))
    assert Watch(folder).in_force == {}
    assert "line 5: Service default/a: spec.ports[0].port: 70000 is not a port (1 to 65535)" in complaints()


def test_a_refused_object_whose_name_is_lost_might_be_any_that_is_missing(folder: Path) -> None:
    save(folder / "a.yaml", a=1, b=1)
    watch = Watch(folder)
    (folder / "a.yaml").write_text(text_of("a", 2) + text_of("b", 2).replace("name: b", "nome: b"))
    watch.until(a=2, b=1)
    assert watch.deleted == []


def test_what_is_wrong_is_known_for_as_long_as_it_lasts(folder: Path) -> None:
    (folder / "a.yaml").write_text(text_of("a", 70000) + text_of("b", 1))
    (folder / "c.yaml").write_text("kind: @x")
    watch = Watch(folder)
    refused, broken = map(str, watch.source.problems)
    assert refused == "Service default/a: spec.ports[0].port: 70000 is not a port (1 to 65535)"
    assert broken.startswith("Manifest c.yaml: it can't be read: line 1: ")
    save(folder / "a.yaml", a=1, b=1)
    watch.still(folder, a=1, b=1)
    assert list(map(str, watch.source.problems)) == [broken]
    (folder / "c.yaml").unlink()
    save(folder / "d.yaml", d=1)
    watch.until(a=1, b=1, mark=1, d=1)
    assert watch.source.problems == []


def test_an_object_that_is_kept_goes_with_its_file(folder: Path) -> None:
    save(folder / "a.yaml", a=1)
    watch = Watch(folder)
    (folder / "a.yaml").write_text(text_of("a", 70000))
    watch.still(folder, a=1)
    (folder / "a.yaml").unlink()
    watch.until(mark=1)


def test_of_one_object_in_two_files_the_first_by_name_counts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(folder / "b.yaml", web=2)
    watch = Watch(folder)
    save_over(folder / "c.yaml", web=3)
    watch.still(folder, web=2)
    save_over(folder / "a.yaml", web=1)
    watch.until(web=1, mark=1)
    save_over(folder / "b.yaml", web=4)
    (folder / "a.yaml").unlink()
    watch.until(web=4, mark=1)
    (folder / "b.yaml").unlink()
    watch.until(web=3, mark=1)
    assert watch.deleted == []
    (folder / "c.yaml").unlink()
    watch.until(mark=1)
    assert "object is in several files" in caplog.messages


def test_of_one_object_twice_in_a_file_the_later_counts(folder: Path, complaints: Callable[[], list[str]]) -> None:
    (folder / "a.yaml").write_text(text_of("a", 1) + text_of("a", 2))
    assert Watch(folder).in_force == {"a": 2}
    assert "Service default/a is there twice; the later one counts" in complaints()


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda path: path.rename(path.with_name("away"))])
def test_a_folder_that_vanishes_takes_nothing_out_of_force_and_may_come_back(
    folder: Path, vanish: Callable[[Path], object]
) -> None:
    save(folder / "a.yaml", a=1)
    save(folder / "b.yaml", b=1)
    watch = Watch(folder)
    fresh = folder.with_name("fresh")
    fresh.mkdir()
    save(fresh / "a.yaml", a=2)
    save(fresh / "b.yaml", b=1)
    vanish(folder)
    fresh.rename(folder)
    watch.until(a=2, b=1)
    assert watch.deleted == []
    save(folder / "b.yaml", b=2)
    watch.until(a=2, b=2)


def test_a_mounted_config_map_changes_by_a_swap_of_links(folder: Path) -> None:
    def publish(version: str, **services: int) -> None:
        (folder / version).mkdir()
        for name, port in services.items():
            save(folder / version / f"{name}.yaml", **{name: port})
        (folder / "..data_tmp").symlink_to(version)
        (folder / "..data_tmp").rename(folder / "..data")
        for name in services:
            if not (folder / f"{name}.yaml").is_symlink():
                (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")

    publish("..2024_1", a=1, b=1)
    watch = Watch(folder)
    assert watch.in_force == {"a": 1, "b": 1}
    publish("..2024_2", a=2, b=1)
    watch.until(a=2, b=1)
    shutil.rmtree(folder / "..2024_1")
    publish("..2024_3", a=3, c=1)
    watch.until(a=3, c=1)


def test_a_single_file_is_watched_alone(folder: Path) -> None:
    save(folder / "a.conf", a=1)
    save(folder / "b.yaml", b=1)
    watch = Watch(folder / "a.conf")
    assert watch.in_force == {"a": 1}
    save(folder / "b.yaml", b=2)
    save(folder / "a.conf", a=2)
    watch.until(a=2)
    save_over(folder / "a.conf", a=3)
    watch.until(a=3)


def test_a_single_file_may_be_named_relative_to_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "a.yaml", a=1)
    monkeypatch.chdir(folder)
    assert Watch(Path("a.yaml")).in_force == {"a": 1}


@pytest.mark.parametrize("path", ["absent", "absent/a.yaml", "a.yaml/b.yaml", "loop"])
def test_a_path_that_can_not_be_read_is_an_error_in_one_sentence(folder: Path, path: str) -> None:
    save(folder / "a.yaml", a=1)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(PathError) as caught:
        ManifestSource(folder / path, lambda _: None)
    assert str(caught.value).startswith(f"can't read manifests from {folder / path}: ")
    assert len(str(caught.value).splitlines()) == 1


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to("a.yaml")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_folder, make_loop, make_pipe])
def test_something_that_is_no_file_does_not_keep_the_others_out(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder / "a.yaml")
    save(folder / "b.yaml", b=1)
    watch = Watch(folder)
    assert watch.in_force == {"b": 1}
    make(folder / "c.yaml")
    save(folder / "b.yaml", b=2)
    watch.until(b=2)


@pytest.mark.parametrize("make", [make_folder, make_loop, make_pipe])
def test_a_file_that_becomes_unreadable_keeps_its_last_good_version(folder: Path, make: Callable[[Path], None]) -> None:
    save(folder / "a.yaml", a=1)
    watch = Watch(folder)
    make(folder / "new")
    if make is make_folder:
        (folder / "a.yaml").rename(folder / "old")  # a folder can't be renamed over a file
    (folder / "new").rename(folder / "a.yaml")
    watch.still(folder, a=1)


def test_a_dangling_link_is_a_file_that_is_absent(folder: Path) -> None:
    (folder / "a.yaml").symlink_to("absent")
    save(folder / "b.yaml", b=1)
    assert Watch(folder).in_force == {"b": 1}


def test_a_file_name_that_is_no_text_is_fine(folder: Path) -> None:
    save(folder / os.fsdecode(b"\xff\n.yaml"), a=1)
    watch = Watch(folder)
    save(folder / os.fsdecode(b"\xff\n.yaml"), a=2)
    watch.until(a=2)


class Failing:
    """inotify that says no a few times, each time followed by a pause of the source's."""

    def __init__(self, times: int, code: int) -> None:
        self.left = times
        self.error = OSError(code, os.strerror(code))
        self.pauses = 0

    def refuse(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error

    def pause(self, _: float) -> None:
        self.pauses += 1


@pytest.mark.parametrize("method", ["__init__", "add_watch"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_kernel_that_has_no_more_watches_is_asked_again_after_a_pause(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, code: int
) -> None:
    """fs.inotify.max_user_instances is 128 on many a node, and its pods share it."""
    failing = Failing(3, code)

    class Refusing(INotify):  # type: ignore[misc]
        def __init__(self) -> None:
            if method == "__init__":
                failing.refuse()
            super().__init__()

        def add_watch(self, *arguments: Any) -> Any:
            if method == "add_watch":
                failing.refuse()
            return super().add_watch(*arguments)

    monkeypatch.setattr("pyproxy.manifest_source.INotify", Refusing)
    monkeypatch.setattr("pyproxy.manifest_source.time", SimpleNamespace(sleep=failing.pause))
    save(folder / "a.yaml", a=1)
    try:
        assert Watch(folder).in_force == {"a": 1}
    except Empty:
        pytest.fail("the source gave up")
    assert failing.pauses >= 3
