"""A pod as kubelet and containerd make it, as far as its rights go: namespaces and a cgroup of its own, of which it can
read sysctls and cgroups and write neither, a read-only root but for its volumes, and the capabilities that it asks for.

Seccomp and AppArmor are left out. What a pod leaves in its cgroup is removed with it.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ebpf import cgroup
from tests.faults.image import Built

_EMPTIES_S = 10.0
_NAMESPACES = ("--mount", "--cgroup", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child")

# $1: its cgroup; the rest is the command.
_JOIN = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'

# $1: the root, $2: capabilities, $3: user and group, $4: folders that are volumes; the rest is the command.
_POD = """set -e
root="$1" capabilities="$2" user="$3" volumes="$4"; shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 -o ro cgroup2 "$root/sys/fs/cgroup"
mount --bind /dev "$root/dev"
for each in $volumes; do mount -t tmpfs tmpfs "$root$each"; done
exec chroot "$root" /usr/bin/setpriv --no-new-privs --bounding-set="-all$capabilities" --inh-caps="-all$capabilities" \
    --reuid "$user" --regid "$user" --clear-groups "$@"
"""


class Pod:
    """Of one container, whose volumes are empty. Use as a context manager."""

    def __init__(self, image: Built, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """``spec``: of the pod. ``environment``: in the place of what the spec says."""
        (self._container,) = spec["containers"]
        self._image = image
        self._environment = image.environment | dict(environment)
        parent = cgroup.root()
        assert parent is not None
        self._cgroup = parent / f"pyproxy-pod-{os.getpid()}"

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end = time.monotonic() + _EMPTIES_S
        while self._cgroup.exists():
            try:
                for folder, _, _ in os.walk(self._cgroup, topdown=False):
                    Path(folder).rmdir()
            except OSError:  # the last processes are about to end
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def run(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Until it ends; what it wrote is its log, in ``stdout``."""
        context = self._container["securityContext"]
        granted = "".join(f",+{name.lower()}" for name in context["capabilities"]["add"])
        volumes = " ".join(mount["mountPath"] for mount in self._container["volumeMounts"])
        inside = ["env", "-i", *(f"{name}={value}" for name, value in self._environment.items())]
        command = ["sh", "-c", _JOIN, "-", str(self._cgroup), "unshare", *_NAMESPACES, "--propagation", "private"]
        command += ["sh", "-c", _POD, "-", str(self._image.root), granted, str(context["runAsUser"]), volumes]
        command += [*inside, *self._container["command"], *self._container["args"]]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout
        )
