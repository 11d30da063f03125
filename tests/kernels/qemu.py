"""Debian's stock kernel in an emulated machine, for what user-mode Linux lacks: nftables, BPF compiled, two processors.

Nothing of it needs the processor's help (KVM), so it runs everywhere, ten to twenty times slower than outside.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kernels.debian_kernel import DebianKernel, fetch
from tests.kernels.guest import HERE, NoKernel
from tests.kernels.initramfs import Initramfs

PROGRAM = "qemu-system-x86_64"
_FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_console")
_MOST_PROCESSORS = 4


class Qemu:
    def __init__(self) -> None:
        """Raises NoKernel."""
        if shutil.which(PROGRAM) is None or shutil.which("depmod", path="/usr/sbin:/sbin") is None:
            raise NoKernel("there is no qemu here; install the Debian packages qemu-system-x86 and kmod")
        self._kernel = fetch()

    def command(self, folder: Path, memory: str, words: Sequence[str]) -> list[str]:
        _initramfs(self._kernel).write(folder / "initramfs")
        always = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"
        processors = min(len(os.sched_getaffinity(0)), _MOST_PROCESSORS)
        return [
            *(PROGRAM, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", str(processors)),
            *("-m", memory, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(self._kernel.image), "-initrd", str(folder / "initramfs")),
            # What it hands to its first process as environment: all words that it does not know.
            *("-append", " ".join([always, f"PYPROXY_GUEST={folder}", *words])),
            *("-chardev", f"file,id=console,path={folder}/console,append=on", "-serial", "chardev:console"),
            *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"),
            *("-fsdev", f"local,id=common,path={folder},security_model=none"),
            *("-device", "virtio-9p-pci,fsdev=common,mount_tag=common"),
            # Not qemu's `stdio`: its standard input ends at once, and then the guest would take it for hung up.
            *("-chardev", "file,id=output,path=/dev/stdout"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=output,name=output"),
        ]

    def settings(self, folder: Path) -> Mapping[str, str]:
        share = "(-t 9p -o trans=virtio,version=9p2000.L,msize=512000 common)"
        return {
            "modules": shlex.quote(str(self._kernel.modules)),
            "share": share,
            "terminal": "$(echo /dev/vport*p1)",
        }


def _initramfs(kernel: DebianKernel) -> Initramfs:
    made = Initramfs()
    made.folders(["dev", "machine", "modules"])
    made.file("busybox", kernel.busybox.read_bytes(), is_program=True)
    made.file("init", (HERE / "initramfs.sh").read_bytes(), is_program=True)
    modules = kernel.in_order(_FIRST_MODULES)
    for module in modules:
        made.file(f"modules/{module.name}", module.read_bytes())
    made.file("modules/order", "\n".join(module.name for module in modules).encode())
    return made
