"""Programs are compiled once, whatever happens to the file in which they are kept."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.lab import PREFIX
from bench.namespace import Namespace
from ebpf import bytecode, pins, store, syscall
from ebpf.bytecode import Bytecode
from ebpf.hook import HOOKS
from ebpf.store import BadProgram, Store


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    namespace = Namespace(f"{PREFIX}{os.getpid()}-bytecode")
    namespace.create()
    yield namespace
    namespace.remove()


@pytest.fixture
def compiled(namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """How often it was compiled, in a network namespace without pins, with an empty cache."""
    runs: list[str] = []
    compiles = store._compiled

    def counted() -> dict[str, Bytecode]:
        runs.append("once more")
        return _compiled_once(compiles)

    monkeypatch.setattr(bytecode, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(store, "_compiled", counted)
    with namespace.entered():
        yield runs
        pins.remove(pins.folder())


_before: list[dict[str, Bytecode]] = []


def _compiled_once(compiles: Callable[[], dict[str, Bytecode]]) -> dict[str, Bytecode]:
    """It takes seconds, and the same comes of it each time."""
    _before[:] = _before or [compiles()]
    return _before[0]


def load() -> set[str]:
    """All anew, as on a node that was restarted; the programs that are in the kernel then."""
    pins.remove(pins.folder())
    loaded = Store()
    loaded.open()
    try:
        return {name for name, handle in loaded.programs.items() if syscall.program_id(handle)}
    finally:
        loaded.close()


def kept() -> Path:
    (only,) = bytecode.CACHE.iterdir()
    return only


def test_a_node_compiles_a_version_once(compiled: list[str]) -> None:
    assert load() == load() == HOOKS.keys()
    assert len(compiled) == 1
    assert (bytecode.CACHE.stat().st_mode & 0o777, kept().stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"connect4": ["", {}]}', '{"connect4": [1, {}]}', '{"connect4": ["", {"x": "config"}]}']
)
def test_a_damaged_file_is_written_anew(compiled: list[str], damage: str) -> None:
    load()
    whole = kept().read_text()
    kept().write_text(damage)
    assert load() == HOOKS.keys()
    assert (len(compiled), kept().read_text()) == (2, whole)


def test_what_others_may_have_written_is_not_loaded(compiled: list[str]) -> None:
    load()
    kept().chmod(0o666)
    assert load() == HOOKS.keys()
    assert len(compiled) == 2


def test_another_version_is_not_kept(compiled: list[str]) -> None:
    bytecode.keep("older", {"connect4": Bytecode(b"", {})})
    load()
    assert "older" not in kept().name


def test_where_nothing_can_be_written_it_compiles_each_time(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytecode, "CACHE", Path("/proc/pyproxy"))
    assert load() == load() == HOOKS.keys()
    assert len(compiled) == 2


def test_a_program_that_the_verifier_refuses_is_named_with_its_reason(
    compiled: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    returns_nothing = bytes([0x95]) + bytes(7)
    monkeypatch.setattr(store, "_compiled", lambda: dict.fromkeys(HOOKS, Bytecode(returns_nothing, {})))
    with pytest.raises(BadProgram, match=r"connect4: .*R0 !read_ok"):
        load()
    assert not bytecode.CACHE.exists()
