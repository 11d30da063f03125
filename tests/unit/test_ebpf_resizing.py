"""Maps of another size, with real ones: what they hold goes on, what keeps its size stays the same map."""

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench.lab import PREFIX
from ebpf import pins, syscall
from ebpf.resizing import Resizing
from ebpf.syscall import HASH, LRU_HASH, NO_PREALLOC, PERCPU_ARRAY, MapSpec

Sizes = dict[str, int]
PLENTY = 1 << 12
KINDS = {"peers": (LRU_HASH, 0), "services": (HASH, NO_PREALLOC), "counters": (PERCPU_ARRAY, 0)}
SIZES = {"peers": PLENTY, "services": 64, "counters": 8}
_TURNS = count()


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def value(number: int) -> bytes:
    return number.to_bytes(8, "little")


class Place:
    """A folder of maps and one of programs."""

    def __init__(self, folder: Path) -> None:
        self.maps, self.programs = folder / "maps-abc", folder / "programs-abc"
        self.maps.mkdir(parents=True)
        self._opened: list[Resizing] = []

    def open(self, **sizes: int) -> Resizing:
        """As another process, which loads its programs."""
        found = SIZES | sizes
        specs = {name: MapSpec(kind, 4, 8, found[name], flags) for name, (kind, flags) in KINDS.items()}
        resizing = Resizing(self.maps, specs)
        self._opened.append(resizing)
        resizing.open(self.programs)
        return resizing

    def load(self) -> None:
        self.programs.mkdir(exist_ok=True)

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture
def place() -> Iterator[Place]:
    pins.mount()
    folder = pins.FILE_SYSTEM / f"{PREFIX}{os.getpid()}-{next(_TURNS)}"
    made = Place(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


def fill(handle: int, numbers: range) -> None:
    length = syscall.map_spec(handle).read_bytes
    syscall.update(handle, {key(number): value(number).ljust(length, b"\0") for number in numbers})


def held(handle: int) -> set[int]:
    found = {int.from_bytes(k, "little"): int.from_bytes(v[:8], "little") for k, v in syscall.entries(handle)}
    assert all(v in (k, 0) for k, v in found.items())
    return {k for k, v in found.items() if v}


def sizes(folder: Path) -> Sizes:
    return {path.name: syscall.map_spec(syscall.pinned(path)).entries for path in folder.iterdir()}


def is_same(one: int, other: int) -> bool:
    """What is put into the one is in the other."""
    syscall.update(one, {key(9999): value(1)})
    found = syscall.lookup(other, key(9999), 8)
    syscall.delete(one, [key(9999)])
    return found is not None


@pytest.mark.parametrize("size", [PLENTY // 2, PLENTY * 2])
def test_what_a_map_of_another_size_held_goes_on(place: Place, size: int) -> None:
    before = place.open()
    fill(before.maps["peers"], range(1, 100))
    fill(before.maps["services"], range(1, 40))
    fill(before.maps["counters"], range(1, 8))
    place.load()
    after = place.open(peers=size, services=128, counters=16)
    assert not place.programs.exists()  # they use the others
    after.catch_up()
    assert held(after.maps["peers"]) == set(range(1, 100))
    assert held(after.maps["services"]) == set(range(1, 40))
    assert held(after.maps["counters"]) == set(range(1, 8))
    assert sizes(place.maps) == SIZES
    place.load()
    after.settle()
    assert sizes(place.maps) == SIZES | {"peers": size, "services": 128, "counters": 16}
    assert list(place.maps.parent.glob("next-*")) == []
    again = place.open(peers=size, services=128, counters=16)
    assert place.programs.exists()
    assert is_same(again.maps["peers"], after.maps["peers"])


def test_what_keeps_its_size_stays_the_same_map(place: Place) -> None:
    before = place.open()
    after = place.open(services=128)
    assert is_same(before.maps["peers"], after.maps["peers"])
    assert not is_same(before.maps["services"], after.maps["services"])
    after.settle()
    assert is_same(before.maps["peers"], place.open(services=128).maps["peers"])


def test_what_comes_and_goes_in_the_former_map_meanwhile_does_so_in_the_new_one(place: Place) -> None:
    before = place.open()
    fill(before.maps["peers"], range(90, 110))
    place.open(peers=PLENTY * 2).catch_up()  # which is interrupted then
    after = place.open(peers=PLENTY * 2)
    syscall.delete(before.maps["peers"], map(key, range(90, 100)))
    after.catch_up()
    assert held(after.maps["peers"]) == set(range(100, 110))


def test_what_new_programs_removed_or_wrote_is_not_taken_from_the_former_map(place: Place) -> None:
    before = place.open()
    fill(before.maps["peers"], range(100, 110))
    after = place.open(peers=PLENTY * 2)
    after.catch_up()
    fill(before.maps["peers"], range(110, 120))
    syscall.delete(after.maps["peers"], [key(100)])
    syscall.update(after.maps["peers"], {key(101): value(0), key(110): value(0)})
    after.fill_in(of_packets=False)
    assert held(after.maps["peers"]) == set(range(102, 110)) | set(range(111, 120))
    after.settle()
    assert held(after.maps["peers"]) == set(range(102, 110)) | set(range(111, 120))


def test_what_is_written_anew_is_not_taken_from_the_former_map_again(place: Place) -> None:
    before = place.open()
    fill(before.maps["services"], range(1, 10))
    after = place.open(services=128)
    syscall.delete(after.maps["services"], [key(1)])
    after.catch_up()
    after.settle()
    assert held(after.maps["services"]) == set(range(2, 10))


def test_a_map_that_is_too_small_takes_what_there_is_room_for(place: Place) -> None:
    before = place.open()
    fill(before.maps["services"], range(1, 60))
    fill(before.maps["counters"], range(1, 8))
    after = place.open(services=16, counters=4)
    assert len(held(after.maps["services"])) == 16
    assert held(after.maps["counters"]) == {1, 2, 3}
    assert len(held(before.maps["services"])) == 59


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("wanted", [{}, {"peers": PLENTY * 2}, {"peers": PLENTY * 4}, {"services": 128}])
def test_a_change_that_was_interrupted_is_made_or_given_up_by_the_next_process(
    place: Place, loaded: bool, wanted: Sizes
) -> None:
    """Programs that are there are those that use the maps."""
    before = place.open()
    fill(before.maps["peers"], range(1, 100))
    place.load()
    interrupted = place.open(peers=PLENTY * 2)
    if loaded:
        place.load()
    after = place.open(**wanted)
    goes_on = wanted == {"peers": PLENTY * 2}
    assert place.programs.exists() is (loaded and goes_on)
    assert is_same(after.maps["peers"], interrupted.maps["peers"]) is goes_on
    after.catch_up()
    assert held(after.maps["peers"]) == set(range(1, 100))
    after.settle()
    assert sizes(place.maps) == SIZES | wanted
    assert list(place.maps.parent.glob("next-*")) == []


def test_a_change_that_was_interrupted_at_its_very_end_is_made_by_the_next_process(place: Place) -> None:
    place.open()
    wanted = {"peers": PLENTY * 2, "services": 128}
    interrupted = place.open(**wanted)
    fill(interrupted.maps["peers"], range(1, 10))
    place.load()
    staged = next(place.maps.parent.glob("next-*")) / "peers"
    staged.rename(place.maps / "peers")
    after = place.open(**wanted)
    assert place.programs.exists()
    for name in KINDS:
        assert name == "counters" or is_same(after.maps[name], interrupted.maps[name])
    after.settle()
    assert sizes(place.maps) == SIZES | wanted
    assert held(after.maps["peers"]) == set(range(1, 10))


@pytest.mark.parametrize("entries", [0, 5, 4096, 30_000])
def test_how_many_entries_a_large_map_has_is_estimated(entries: int) -> None:
    handle = syscall.create_map("estimated", MapSpec(HASH, 4, 8, 1 << 16))
    try:
        fill(handle, range(entries))
        assert len(dict(syscall.entries(handle))) == entries
        found = syscall.estimated(handle)
        assert found == entries if entries <= 4096 else abs(found - entries) < entries // 8
    finally:
        os.close(handle)


def test_programs_that_use_a_map_which_is_gone_are_not_used_any_more(place: Place) -> None:
    place.open()
    place.load()
    (place.maps / "services").unlink()
    place.open()
    assert not place.programs.exists()


def test_a_map_that_the_kernel_does_not_make_is_named(place: Place) -> None:
    with pytest.raises(OSError) as raised:
        place.open(services=(1 << 32) - 1)
    assert raised.value.filename == f"a map services of {(1 << 32) - 1} entries"
