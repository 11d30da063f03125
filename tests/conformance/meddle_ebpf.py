"""What a stranger may do to what ebpf mode has in the kernel: `python -m tests.conformance.meddle_ebpf WHAT …`.

In the node's network namespace, since that says which maps and programs are meant.
"""

import os
import shutil
import struct
import sys
from pathlib import Path

from ebpf import cgroup, layout, pins, store, syscall
from ebpf.hook import SOCKET
from modes.ebpf.entries import spelled
from modes.ebpf.route import Key

LINKS = pins.folder() / "links"
STRANGER = pins.FILE_SYSTEM / f"stranger-{pins.folder().name}"


def unpin() -> None:
    """Everything."""
    shutil.rmtree(pins.folder())


def detach() -> None:
    for link in LINKS.iterdir():
        link.unlink()


def replace() -> None:
    """The program that connects, by one that lets everything be."""
    syscall.update_link(syscall.pinned(LINKS / "connect4"), _idle())


def empty(name: str) -> None:
    handle = store.opened_maps()[name]
    syscall.delete(handle, [key for key, _ in syscall.entries(handle)])


def delete(address: str) -> None:
    """The service at its port 80."""
    syscall.delete(store.opened_maps()["services"], [layout.place(layout.address(address), 80, "tcp")])


def add(address: str) -> None:
    """A service at port 80 of an address."""
    place = layout.place(layout.address(address), 80, "tcp")
    service = layout.Service(layout.Pool(1, 1), layout.Pool(1, 1)).packed()
    syscall.update(store.opened_maps()["services"], {place: service})


def redirect(before: str, after: str) -> None:
    """All slots of that backend's address to another one."""
    handle = store.opened_maps()["backends"]
    found = {key: layout.read_backend(value) for key, value in syscall.entries(handle)}
    syscall.update(handle, {key: layout.backend(after, port) for key, (ip, port) in found.items() if ip == before})


def move() -> None:
    """The node into another network namespace."""
    syscall.update(store.opened_maps()["config"], {layout.number(0): layout.Config(1).packed()})


def lose(pool: str, number: str) -> None:
    """A slot."""
    syscall.delete(store.opened_maps()["backends"], [layout.slot(int(pool), int(number))])


def show() -> None:
    for link in sorted(LINKS.glob("*")):
        print("program", link.name)
    for name, handle in store.opened_maps().items():
        for key, _ in syscall.entries(handle) if name in ("services", "addresses") else ():
            print(name, spelled(Key(name, key)))
    for path in STRANGER.parent.glob(STRANGER.name):
        print("stranger", syscall.link_info(syscall.pinned(path)).cgroup)


def come() -> None:
    """A stranger's program on a hook of ours."""
    group = syscall.link_info(syscall.pinned(LINKS / "connect4")).cgroup
    root = cgroup.root()
    assert root is not None
    target = next(path for path in (root, *root.rglob("*")) if path.is_dir() and path.stat().st_ino == group)
    link = syscall.create_link(_idle(), os.open(target, os.O_RDONLY), SOCKET["connect4"].attach)
    syscall.pin(link, Path(STRANGER))


def go() -> None:
    STRANGER.unlink()


def _idle() -> int:
    """A program that returns 1."""
    code = b"".join(
        struct.pack("=BBhi", kind, register, 0, value) for kind, register, value in ((0xB7, 0, 1), (0x95, 0, 0))
    )
    hook = SOCKET["connect4"]
    return syscall.load_program(hook.kind, hook.attach, code, "stranger")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
