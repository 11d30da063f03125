"""The stock kernel of this Debian, unpacked into the checkout's cache: it is run, not installed.

Of its drivers only those are kept that a machine without hardware has use for.
"""

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.guest import CHECKOUT, NoKernel

_CACHE = CHECKOUT / ".cache" / "kernels"
_META_PACKAGE = "linux-image-amd64"  # linux-image-cloud-amd64 lacks 9p
_KEPT = re.compile(
    r"\./(boot/vmlinuz-.*|bin/busybox|lib/modules/[^/]+/"
    r"(modules\..*|kernel/(?!drivers/|sound/).*|kernel/drivers/(virtio|char|net)/[^/]+|kernel/drivers/net/vxlan/.*))"
)


@dataclass(frozen=True, slots=True)
class DebianKernel:
    folder: Path

    @property
    def image(self) -> Path:
        return next((self.folder / "boot").glob("vmlinuz-*"))

    @property
    def busybox(self) -> Path:
        return self.folder / "bin" / "busybox"

    @property
    def modules(self) -> Path:
        return next((self.folder / "lib" / "modules").iterdir())

    def in_order(self, names: Iterable[str]) -> list[Path]:
        """Files of these modules, each after those that it needs."""
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            module, _, others = line.partition(":")
            needs[module] = others.split()
        by_name = {Path(module).name.partition(".")[0]: module for module in needs}
        order: dict[str, None] = {}

        def add(module: str) -> None:
            for other in needs[module]:
                add(other)
            order[module] = None

        for name in names:
            add(by_name[name])
        return [self.modules / module for module in order]


def fetch() -> DebianKernel:
    """From the cache, or from Debian. Raises NoKernel."""
    try:
        depends = _output(["apt-cache", "depends", _META_PACKAGE])
        package = re.findall(r"Depends: (linux-image-\S+)", depends)[0]
        folder = _CACHE / package
        if not folder.exists():
            _CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
                shutil.move(_unpacked(Path(scratch), [package, "busybox-static"]), folder)
    except (OSError, IndexError, subprocess.CalledProcessError, tarfile.TarError) as error:
        said = getattr(error, "stderr", None) or error
        raise NoKernel(
            f"the package of Debian's kernel, {_META_PACKAGE}, can't be had ({str(said).strip()}); on Debian, try "
            "`apt-get update`"
        ) from error
    return DebianKernel(folder)


def _unpacked(scratch: Path, packages: Sequence[str]) -> Path:
    # APT would rather be somebody else here, who may not write into this folder.
    _output(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages], scratch)
    root = scratch / "root"
    for package in scratch.glob("*.deb"):
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if _KEPT.fullmatch(member.name) and (content := archive.extractfile(member)) is not None:
                    (root / member.name).parent.mkdir(parents=True, exist_ok=True)
                    (root / member.name).write_bytes(content.read())
    release = next((root / "lib" / "modules").iterdir()).name
    _output(["/usr/sbin/depmod", "-b", str(root), release])
    return root


def _output(command: Sequence[str], folder: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
