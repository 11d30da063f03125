"""Programs on a device's way in and out, by links of tcx (Linux 6.6), which are pinned beside the maps.

Older kernels get filters of traffic control instead. For these the kernel stops the device for a moment as their first
one comes and their last one goes, and drops what it would have sent meanwhile (qdisc_graft, dev_deactivate).
"""

import errno
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ebpf import pins, syscall
from modes.ebpf import traffic_control
from pyproxy.kernel.netlink import Netlink

_ATTACH = {"ingress": 46, "egress": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS


def attach(netlink: Netlink, index: int, programs: Mapping[str, int]) -> bool:
    """In place of ours that are there; whether the device was stopped for it. One that has just vanished is no failure.

    Raises OSError.
    """
    try:
        for hook, program in programs.items():
            _link(_place(index, hook), index, _ATTACH[hook], program)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        if error.errno != errno.EINVAL:
            raise
        return traffic_control.attach(netlink, index, programs)  # this kernel does not know tcx
    return traffic_control.detach(netlink, index)


def attached(netlink: Netlink, index: int) -> dict[str, int]:
    """The ids of our programs, by hook. Raises OSError."""
    found = {}
    for hook in _ATTACH:
        if (place := _place(index, hook)).exists():
            link = syscall.pinned(place)
            try:
                info = syscall.link_info(link)
            finally:
                os.close(link)
            if info.device == index:
                found[hook] = info.program
    return found or traffic_control.attached(netlink, index)


def are_any(indices: Collection[int]) -> bool:
    """Whether links are on any of these devices that may be ours: without their pins nobody knows. Raises OSError."""
    return any(syscall.count_attached(index, attach) for index in indices for attach in _ATTACH.values())


def detach(netlink: Netlink, index: int) -> bool:
    """Whether there was anything; also of a device that has vanished. Raises OSError."""
    mine = [place for hook in _ATTACH if (place := _place(index, hook)).exists()]
    for place in mine:
        # Who may not call bpf(2) has the link end with its pin, a moment later.
        with suppress(PermissionError):
            link = syscall.pinned(place)
            try:
                syscall.detach_link(link)
            finally:
                os.close(link)
        place.unlink()
    return traffic_control.detach(netlink, index) or bool(mine)


def _link(place: Path, index: int, attach: int, program: int) -> None:
    if place.exists():
        link = syscall.pinned(place)
        try:
            if syscall.link_info(link).device == index:
                syscall.update_link(link, program)
                return
        finally:
            os.close(link)
        place.unlink()  # of a device that had the same index
    link = syscall.create_link(program, index, attach)
    try:
        place.parent.mkdir(exist_ok=True)
        syscall.pin(link, place)
    finally:
        os.close(link)


def _place(index: int, hook: str) -> Path:
    return pins.folder() / "devices" / f"{index}-{hook}"
