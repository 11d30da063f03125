"""What deploy/Dockerfile builds: that it serves, with what the DaemonSet grants it, and that it holds nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ask import ask
from bench.demo import EXAMPLES
from bench.lab import CLUSTER_CIDRS, NODE_NAME, Host, Lab
from pyproxy import __version__
from tests.conformance.cluster import until
from tests.faults import dockerfile
from tests.faults.dockerfile import DockerfileError
from tests.faults.image import REPOSITORY, Image

DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
NET_ADMIN = 1 << 12
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cpp", "rustc", "go")
HEADERS_FOR_BPF = "linux-libc-dev"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with Image(DOCKERFILE.read_text()) as built:
        yield built


def test_it_serves_with_one_capability_and_a_read_only_root(image: Image, lab: Lab, tmp_path: Path) -> None:
    flags = ["--mode", "nftables", "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDRS]
    arguments = ["run", "--manifests", "/mnt", *flags]
    command = image.container(arguments, EXAMPLES, capability="net_admin", user="0")
    with (tmp_path / "log").open("wb") as log:
        proxy = lab.node.namespace.start(command, stdout=log, stderr=log)
        requests = [
            (who, address, port, protocol)
            for who in (lab.pods["pod-2"], lab.client)
            for address in ("10.96.0.80", "fd00:10:96::80")
            for port, protocol in ((80, "TCP"), (53, "UDP"))
        ]
        until(lambda: all(_answers(*each) for each in requests), lambda: (tmp_path / "log").read_text()[-3000:])
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines())
    capabilities = {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")}
    assert capabilities == dict.fromkeys(capabilities, NET_ADMIN)
    assert status["NoNewPrivs"] == "1"
    assert Path(f"/proc/{proxy.pid}/root").stat().st_ino == image.root.stat().st_ino
    assert " ro" in next(
        line for line in Path(f"/proc/{proxy.pid}/mounts").read_text().splitlines() if line.split()[1] == "/"
    )
    proxy.terminate()
    assert proxy.wait(timeout=10) == 0


def test_nobody_can_ask_it_what_it_is(image: Image) -> None:
    """As the user that the image names, without any capability."""
    assert image.run("--version").stdout == f"pyproxy {__version__}\n"
    listed = image.run("modes", "--json")
    assert listed.returncode == 0, listed.stderr
    (nftables,) = [entry for entry in json.loads(listed.stdout) if entry["mode"] == "nftables"]
    assert "CAP_NET_ADMIN" in nftables["reason"]  # so nft was found


def test_what_it_runs_by_default_is_a_command(image: Image) -> None:
    """It fails on the configuration file that is not there, not on its words."""
    (_, stage) = dockerfile.parse(DOCKERFILE.read_text())
    done = image.run(*stage.last("CMD").command)
    assert done.returncode == 1
    assert "/var/lib/kube-proxy/config.conf" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_holds_what_kube_proxys_traces_are_removed_with(image: Image) -> None:
    for flavour in ("legacy", "nft"):
        for program in (f"iptables-{flavour}-restore", f"ip6tables-{flavour}-save"):
            assert image.inside("sh", "-c", f"command -v {program}").returncode == 0


def test_it_holds_no_pip_no_compiler_and_no_headers_but_those_for_bpf(image: Image) -> None:
    packages = set(image.inside("dpkg-query", "-W", "-f", "${Package}\n").stdout.split())
    assert {"python3", "nftables", "iptables", HEADERS_FOR_BPF} <= packages
    assert {name for name in packages if name.endswith("-dev")} == {HEADERS_FOR_BPF}
    assert not {name for name in packages if name.startswith(("python3-pip", "python3-venv", "python3-setuptools"))}
    for program in (*COMPILERS, "pip", "pip3"):
        assert image.inside("sh", "-c", f"command -v {program}").returncode != 0, program
    for module in ("pip", "ensurepip", "setuptools", "hatchling", "pytest", "pyroute2"):
        done = image.inside("/opt/pyproxy/bin/python3", "-c", f"import {module}")
        assert "ModuleNotFoundError" in done.stderr or "ensurepip" in done.stderr, module


def test_it_holds_what_the_lock_pins_and_this_package_and_nothing_that_can_change_it(image: Image) -> None:
    listing = "from importlib.metadata import distributions as d; print(*(f'{i.name}=={i.version}' for i in d()))"
    found = image.inside("/opt/pyproxy/bin/python3", "-c", listing).stdout.lower().replace("_", "-").split()
    lines = (REPOSITORY / "deploy" / "requirements.lock").read_text().splitlines()
    pinned = [line.split()[0] for line in lines if "==" in line and not line.startswith((" ", "#"))]
    assert sorted(found) == sorted([*pinned, f"pyproxy=={__version__}"])
    editable = image.inside("find", "/opt/pyproxy", "-name", "*.pth", "-o", "-name", "direct_url.json").stdout.split()
    assert not [path for path in editable if path.endswith(".pth")]
    writable = image.inside("find", "/opt/pyproxy", "-not", "-type", "l", "-perm", "/022")
    assert (writable.returncode, writable.stdout) == (0, "")


def test_no_mount_stays(image: Image) -> None:
    assert str(image.root.parent) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FROM debian:bookworm-slim\nADD x /y\n", "ADD x /y"),
        ("FROM debian:bookworm-slim\nrun true\n", "run true"),
        ("RUN true\n", "before the first FROM"),
        ("FROM debian:bookworm-slim\nRUN true \\\n", "continued by nothing"),
        ("FROM a b c d\n", "FROM a b c d"),
        ("# nothing\n", "no FROM"),
    ],
)
def test_the_reader_of_dockerfiles_takes_nothing_that_it_does_not_know(text: str, says: str) -> None:
    with pytest.raises(DockerfileError, match=says):
        dockerfile.parse(text)


def test_a_failing_step_fails_the_build_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = Image('FROM debian:bookworm-slim\nRUN true\nENTRYPOINT ["x"]\n')
    monkeypatch.setattr("tests.faults.image._sources", lambda _: ["deb file:/nowhere bookworm main"])
    with pytest.raises(RuntimeError, match="mmdebstrap"), broken:
        pass
    assert list(tmp_path.iterdir()) == []


def _answers(who: Host, address: str, port: int, protocol: str) -> bool:
    try:
        return ask(who, address, port, protocol, timeout=0.3).pod.startswith("pod-")
    except OSError:
        return False
