"""What deploy/Dockerfile builds: that it serves, with what the DaemonSet grants it, and that it holds nothing else."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.ask import ask
from bench.contender import contenders
from bench.contestant import CONTROL, FLOOR
from bench.demo import EXAMPLES
from bench.document import Document
from bench.lab import CLUSTER_CIDRS, NODE_NAME, Host, Lab
from pyproxy import __version__, modes
from tests.conformance.cluster import until
from tests.faults import dockerfile
from tests.faults.dockerfile import DockerfileError
from tests.faults.image import REPOSITORY, Image
from tests.faults.pod import Pod
from tests.unit import kustomize

DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39}
"""The bits."""
SERVED_IN_S = 30.0
"""With a compiler at work before."""
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cpp", "rustc", "go")
HEADERS_FOR_BPF = "linux-libc-dev"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with Image(DOCKERFILE.read_text()) as built:
        yield built


@pytest.mark.parametrize(
    ("overlay", "mode", "flavour"),
    [
        ("overlays/nftables", "nftables", "legacy"),
        ("base", "iptables", "nft"),
        ("overlays/iptables", "iptables", "nft"),
        ("overlays/iptables", "iptables", "legacy"),
        ("overlays/ebpf", "ebpf", "nft"),
    ],
)
def test_it_serves_with_what_the_overlay_grants_and_no_more(
    image: Image, tmp_path: Path, overlay: str, mode: str, flavour: str
) -> None:
    """And with a read-only root; what it then leaves in the kernel, the Job of the way back removes."""

    def said() -> str:
        return (tmp_path / "log").read_text()[-3000:]

    flags = ["--mode", mode, "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDRS]
    grants = of_overlay(overlay, tmp_path)
    with Lab(flavour) as lab:
        command = image.container(
            ["run", "--manifests", "/mnt", *flags, *(lab.flags if mode == "ebpf" else ())], EXAMPLES, **grants
        )
        with (tmp_path / "log").open("wb") as log:
            proxy = lab.node.namespace.start(command, stdout=log, stderr=log)
            requests = [
                (who, address, port, protocol)
                for who in (lab.pods["pod-2"], lab.client)
                for address in ("10.96.0.80", "fd00:10:96::80")
                for port, protocol in ((80, "TCP"), (53, "UDP"))
            ]
            # What is sent before would be sent back, and the client told another way, which it keeps to.
            until(lambda: "synced" in said(), said, SERVED_IN_S)
            until(lambda: all(_answers(*each) for each in requests), said)
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines())
        granted = sum(1 << CAPABILITIES[name] for name in grants["capabilities"])
        capabilities = {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")}
        assert capabilities == dict.fromkeys(capabilities, granted)
        assert status["NoNewPrivs"] == "1"
        assert Path(f"/proc/{proxy.pid}/root").stat().st_ino == image.root.stat().st_ino
        assert " ro" in next(
            line for line in Path(f"/proc/{proxy.pid}/mounts").read_text().splitlines() if line.split()[1] == "/"
        )
        proxy.terminate()
        assert proxy.wait(timeout=10) == 0
        lab.node.namespace.run([f"iptables-{flavour}", "-t", "nat", "-N", "KUBE-SERVICES"])  # kube-proxy serves again
        way_back = image.container(["cleanup"], EXAMPLES, **of_overlay("", tmp_path))
        removed = lab.node.namespace.run(way_back).stdout.decode()
        assert len(removed.splitlines()) in (2, 4)  # of each family one table, or what is ours in two; devices and pins
        assert removed.count("removed ") == len(removed.splitlines())
        assert lab.node.namespace.run(way_back).stdout == b"nothing to remove\n"


@pytest.mark.parametrize(
    ("capabilities", "says"), [(["NET_ADMIN"], "NET_RAW"), (["NET_ADMIN", "NET_RAW"], "/run/xtables.lock")]
)
def test_where_there_are_legacy_tables_it_says_what_it_lacks_for_them(
    image: Image, capabilities: list[str], says: str
) -> None:
    """So that who takes the base, or another mode's overlay, knows what to add."""
    with Lab("legacy") as lab:
        command = image.container(["modes", "--json"], EXAMPLES, capabilities, user="0")
        listed = json.loads(lab.node.namespace.run(command).stdout)
    reasons = {entry["mode"]: entry["reason"] for entry in listed}
    assert reasons["nftables"] is None
    assert says in reasons["iptables"]


def of_overlay(overlay: str, scratch: Path) -> dict[str, Any]:
    """What the container gets that writes to the kernel: of an overlay's DaemonSet, or of the Job of the way back."""
    deploy = REPOSITORY / "deploy"
    if overlay:
        (workload,) = [one for one in kustomize.render(deploy / overlay) if one["kind"] == "DaemonSet"]
    else:
        (workload,) = kustomize.load(deploy / "overlays" / "migrate-from-kube-proxy" / "way-back.yaml")
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    lock = scratch / "xtables.lock"
    lock.touch(0o600)
    places = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    folders = [
        places[mount["name"]] + (":ro" if mount.get("readOnly") else "")
        for mount in container.get("volumeMounts", [])
        if mount["name"] in places and mount["mountPath"] != "/run/xtables.lock"
    ]
    has_lock = "/run/xtables.lock" in [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    return {
        "capabilities": context["capabilities"]["add"],
        "user": str(context["runAsUser"]),
        "lock": lock if has_lock else None,
        "folders": folders,
    }


def test_nobody_can_ask_it_what_it_is(image: Image) -> None:
    """As the user that the image names, without any capability."""
    assert image.run("--version").stdout == f"pyproxy {__version__}\n"
    listed = image.run("modes", "--json")
    assert listed.returncode == 0, listed.stderr
    reasons = {entry["mode"]: entry["reason"] for entry in json.loads(listed.stdout)}
    assert reasons.keys() == {"ebpf", "iptables", "ipvs", "nftables", "userspace"}
    assert "no IPVS" in reasons.pop("ipvs")
    for mode, reason in reasons.items():
        assert "CAP_NET_ADMIN" in reason, mode  # so its programs were found


def test_what_it_runs_by_default_is_a_command(image: Image) -> None:
    """It fails on the configuration file that is not there, not on its words."""
    *_, stage = dockerfile.parse(DOCKERFILE.read_text())
    done = image.run(*stage.last("CMD").command)
    assert done.returncode == 1
    assert "/var/lib/kube-proxy/config.conf" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_holds_both_flavours_of_iptables(image: Image) -> None:
    for flavour in ("legacy", "nft"):
        for program in (f"iptables-{flavour}-restore", f"ip6tables-{flavour}-save"):
            assert image.inside("sh", "-c", f"command -v {program}").returncode == 0


def test_it_holds_no_pip_no_compiler_and_no_headers_but_those_for_bpf(image: Image) -> None:
    packages = set(image.inside("dpkg-query", "-W", "-f", "${Package}\n").stdout.split())
    assert {"python3", "nftables", "iptables", "python3-bpfcc", HEADERS_FOR_BPF} <= packages
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


def test_the_job_measures_with_what_it_is_granted_and_no_more(image: Image, tmp_path: Path) -> None:
    """And the command in deploy/README.md gets its result out of its log."""
    (job,) = kustomize.load(REPOSITORY / "deploy" / "bench" / "job.yaml")
    few = "latency --services 1 --rounds 1 --samples 5 --warm-up 5"
    spec = job["spec"]["template"]["spec"]
    with Pod(image.target("bench"), spec, {"BENCH": few, "NODE_NAME": "node-7"}) as pod:
        done = pod.run(timeout=300)
    assert done.returncode == 0, done.stdout
    readme = (REPOSITORY / "deploy" / "README.md").read_text()
    (unpack,) = re.findall(r"logs \S+ \|\n +(sed .* \| base64 -d) >", readme)
    file = tmp_path / "node-7.json.gz"
    with file.open("wb") as target:
        subprocess.run(["/bin/sh", "-c", unpack], input=done.stdout.encode(), stdout=target, check=True)
    document = Document.read(file)
    assert (document.environment["node"], document.complete) == ("node-7", True)
    (outcome,) = document.outcomes
    assert outcome.failed == {}
    runnable = [name for name in modes.names() if modes.load(name).probe() is None]
    assert {one.contestant for one in outcome.figures} == {FLOOR, CONTROL, *map(str, contenders(runnable)[0])}
    assert not [one for one in outcome.figures if one.failures]


def test_a_job_that_measures_nothing_fails(image: Image) -> None:
    (job,) = kustomize.load(REPOSITORY / "deploy" / "bench" / "job.yaml")
    spec = job["spec"]["template"]["spec"]
    with Pod(image.target("bench"), spec, {"BENCH": "latency --mode magic", "NODE_NAME": "node-7"}) as pod:
        done = pod.run(timeout=60)
    assert done.returncode == 1
    assert "there is no mode 'magic'" in done.stdout


def test_what_measures_holds_what_measuring_takes_and_the_node_s_image_does_not(image: Image) -> None:
    for root, holds in ((image.target("bench").root, True), (image.root, False)):
        for program in ("iperf3", "wrk", "nginx"):
            assert any((root / folder / program).exists() for folder in ("usr/bin", "usr/sbin")) is holds, program
        for package in ("pyroute2", "rich", "trustme"):
            assert bool(list(root.glob(f"opt/pyproxy/lib/python3*/site-packages/{package}"))) is holds, package


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
