"""deploy/Dockerfile, built without Docker: each stage a root directory, each RUN a chroot.

`FROM debian:CODENAME-slim` becomes mmdebstrap's smallest root. Mounts live in the mount namespace of one command and
end with it, so nothing has to be unmounted. Debian's packages come from where this machine takes them; Python's wheels
are fetched by this machine's pip as it is configured, and pip in the root finds them, and checks their hashes, in a
folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults import dockerfile
from tests.faults.dockerfile import Stage, Step

REPOSITORY = Path(__file__).parents[2]
_PREFIX = "pyproxy-image-"
_FROM_HOST = "/run/host"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1: the root, $2: the working directory, $3: what of the host goes to /run/host, $4: the command.
_RUN = f"""set -e
mount --bind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/run"
mkdir "$1{_FROM_HOST}"
mount --bind "$3" "$1{_FROM_HOST}"
mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
exec chroot "$1" /bin/sh -c 'cd "$1" && exec /bin/sh -c "$2"' - "$2" "$4"
"""

# A container as the DaemonSet asks for it: read-only but for /tmp, few capabilities or none, no way to gain any. $1:
# the root, $2: what it finds at /mnt, $3: the capabilities, $4: user and group, $5: the host's xtables.lock or nothing,
# $6: folders of the host that it sees, too, each with :ro if it must not write there; the rest is the command.
_CONTAINER = """set -e
root="$1" mnt="$2" capabilities="$3" user="$4" lock="$5" folders="$6"; shift 6
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$mnt" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
if [ "$lock$folders" ]; then
    mount -t sysfs -o ro none "$root/sys"
    mount -t tmpfs tmpfs "$root/run"  # for what to mount upon, which a container runtime puts there, too
    touch "$root/run/xtables.lock"
    for each in $folders; do
        folder="${each%:ro}"
        [ -d "$root$folder" ] || mkdir "$root$folder"
        mount --rbind "$folder" "$root$folder"
        [ "$folder" = "$each" ] || mount -o remount,bind,ro "$root$folder"
    done
    mount -o remount,ro "$root/run"
    [ -z "$lock" ] || mount --bind "$lock" "$root/run/xtables.lock"
fi
exec chroot "$root" /usr/bin/setpriv --no-new-privs --bounding-set="-all$capabilities" --inh-caps="-all$capabilities" \
    --reuid "$user" --regid "$user" --clear-groups "$@"
"""
_UNSHARED = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]


@dataclass(slots=True)
class Built:
    """A stage that has been built."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    directory: str = "/"


class Image:
    """Use as a context manager; the roots are gone afterwards."""

    def __init__(self, text: str) -> None:
        self._stages = dockerfile.parse(text)
        self._admitted = dockerfile.admitted(REPOSITORY / ".dockerignore")
        self._built: dict[str, Built] = {}

    def __enter__(self) -> Self:
        _sweep()
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        try:
            self._scratch.chmod(0o755)
            self._host = self._scratch / "host"
            self._host.mkdir()
            self._bases: dict[str, Path] = {}
            for stage in self._stages:
                self._build(stage)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._scratch)

    @property
    def root(self) -> Path:
        """Of the last stage, which is the image."""
        return self._built[""].root

    def target(self, name: str) -> Built:
        """What `docker build --target NAME` gives."""
        return self._built[name]

    def container(
        self,
        arguments: Sequence[str],
        mounted: Path,
        capabilities: Sequence[str] = (),
        user: str = "",
        lock: Path | None = None,
        folders: Sequence[str] = (),
    ) -> list[str]:
        """The command that runs the image with ``arguments`` as the DaemonSet would, ``mounted`` to be seen at /mnt.

        It becomes the proxy without a fork, so that its process id is the proxy's. ``user`` is the image's by default.
        ``lock`` is to be seen at /run/xtables.lock, each of ``folders`` where it is, with ``:ro`` to be read only.
        """
        last = self._stages[-1]
        environment = [f"{name}={value}" for name, value in self._built[""].environment.items()]
        command = ["env", "-i", *environment, *last.last("ENTRYPOINT").command, *arguments]
        user = user or last.last("USER").words[0].partition(":")[0]
        granted = "".join(f",+{name.lower()}" for name in capabilities)
        places = [str(self.root), str(mounted), granted, user, str(lock or ""), " ".join(folders)]
        return [*_UNSHARED, _CONTAINER, "-", *places, *command]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Of the image, as its USER and without capabilities."""
        command = self.container(arguments, self._host)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Any command as root in the image's root."""
        command = ("chroot", str(self.root), "env", "-i", f"PATH={self._built[''].environment['PATH']}", *command)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def _build(self, stage: Stage) -> None:
        root = self._scratch / f"stage-{len(self._built)}"
        start = self._built[stage.base] if stage.start else Built(self._base(stage.base))
        if self._is_of_use_after(stage):
            _call(["cp", "-a", "--reflink=auto", str(start.root), str(root)])
        else:
            start.root.rename(root)
        built = self._built[stage.name] = Built(root, dict(start.environment), start.directory)
        for step in stage.steps:
            match step.keyword:
                case "RUN":
                    self._run(built, step)
                case "COPY":
                    self._copy(built, step)
                case "ENV":
                    built.environment |= dict(word.split("=", 1) for word in step.words)
                case "WORKDIR":
                    built.directory = step.text
                    (root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
                case "ARG":
                    raise NotImplementedError(f"ARG {step.text}")

    def _is_of_use_after(self, stage: Stage) -> bool:
        """What ``stage`` starts from: whether another one does, or copies out of it."""
        later = self._stages[self._stages.index(stage) + 1 :]
        copied = f"--from={stage.base} "
        return any(one.base == stage.base or any(copied in step.text for step in one.steps) for one in later)

    def _base(self, image: str) -> Path:
        codename = image.removeprefix("debian:").removesuffix("-slim")
        if image != f"debian:{codename}-slim":
            raise NotImplementedError(f"FROM {image}")
        if image not in self._bases:
            base = self._bases[image] = self._scratch / codename
            settings = self._host / "apt.conf"
            settings.write_text(_apt_settings())
            (self._host / "wheels").mkdir()
            # Without fsync, as in Debian's own images.
            options = ["--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--aptopt={settings}"]
            _call(["mmdebstrap", "--quiet", *options, codename, str(base), *_sources(codename)])
            (base / "etc/resolv.conf").touch()
            policy = base / "usr/sbin/policy-rc.d"  # as in Debian's own images: packages start nothing
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        return self._bases[image]

    def _run(self, built: Built, step: Step) -> None:
        words = step.words
        for lock in (words[index + 1] for index, word in enumerate(words) if word == "-r"):
            self._fetch(REPOSITORY / lock)
        environment = {name: os.environ[name] for name in _PROXIES if name in os.environ} | built.environment
        environment |= {
            "DEBIAN_FRONTEND": "noninteractive",  # of a terminal there is none here, as in `docker build`
            "APT_CONFIG": f"{_FROM_HOST}/apt.conf",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": f"{_FROM_HOST}/wheels",
        }
        _call([*_UNSHARED, _RUN, "-", str(built.root), built.directory, str(self._host), step.text], env=environment)

    def _fetch(self, lock: Path) -> None:
        """The wheels that a root will look for: for its Python, which may be another than this one."""
        options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--require-hashes"]
        target = ["-r", str(lock), "-d", str(self._host / "wheels")]
        _call([sys.executable, "-m", "pip", "download", "--quiet", *options, *target])

    def _copy(self, built: Built, step: Step) -> None:
        *sources, target = step.words
        origin = REPOSITORY
        if sources[0].startswith("--from="):
            origin = self._built[sources.pop(0).removeprefix("--from=")].root
        elif missing := set(sources) - self._admitted:
            raise FileNotFoundError(f"COPY {missing}: .dockerignore keeps it out")
        place = built.root / Path("/", built.directory, target).relative_to("/")
        for source in (origin / name.lstrip("/") for name in sources):
            if source.is_dir():
                cached = shutil.ignore_patterns("__pycache__") if origin is REPOSITORY else None
                shutil.copytree(source, place, symlinks=True, ignore=cached, dirs_exist_ok=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place / source.name)


def _sources(codename: str) -> list[str]:
    """Where this machine takes the packages of that Debian from, as mmdebstrap wants it; if nowhere, it knows best."""
    wanted = ("apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages")
    releases = {codename, f"{codename}-updates", f"{codename}-security"}
    lines = _call(wanted).splitlines()
    return sorted({line for line in lines if line.split()[2] in releases and line.split()[3] == "main"})


def _apt_settings() -> str:
    """How this machine's apt fetches: proxies, certificates, patience. Not its hooks, nor which indices it reads."""
    settings = _call(["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"]).splitlines()
    return "\n".join(line for line in settings if not line.startswith("Acquire::IndexTargets")) + "\n"


def _sweep() -> None:
    """Roots that a killed run left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path)


def _call(command: Sequence[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"[-8000:])
    return str(done.stdout)
