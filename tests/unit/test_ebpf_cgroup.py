"""Which cgroup is the node's, and which a container's own: read from files such as the kernel has them."""

import os
from pathlib import Path

import pytest

from ebpf import cgroup


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup"),
        ("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n", None),
        ("cgroup /a cgroup rw,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", "/sys/fs/cgroup/unified"),
        ("cgroup2 /with\\040space cgroup2 rw 0 0\n", "/with space"),
    ],
)
def test_the_root_is_where_it_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, expected: str | None
) -> None:
    (tmp_path / "mounts").write_text(mounts)
    monkeypatch.setattr(cgroup, "_MOUNTS", tmp_path / "mounts")
    assert cgroup.root() == (Path(expected) if expected else None)


@pytest.mark.parametrize(
    ("has_type", "members", "expected"),
    [
        (False, [1, os.getpid()], False),  # the root of a host, with everybody in it
        (True, [1, os.getpid()], True),
        (True, [1], False),  # the root of a node that is a container itself, as with kind
    ],
)
def test_a_containers_own_cgroup_is_known(tmp_path: Path, has_type: bool, members: list[int], expected: bool) -> None:
    if has_type:
        (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in members))
    assert cgroup.is_own(tmp_path) is expected
