"""The manifests in deploy/, rendered: that a server takes them, and that they ask for no more than is needed."""

import copy
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy import __version__, modes
from pyproxy.command import main
from tests.unit import kubernetes_schema, kustomize
from tests.unit.kustomize import KustomizeError, Object

DEPLOY = Path(__file__).parents[2] / "deploy"
MIGRATION = DEPLOY / "overlays" / "migrate-from-kube-proxy"
OVERLAYS = sorted(path.parent.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("kustomization.yaml"))
LOCK = "/run/xtables.lock"
PINS = "/sys/fs/bpf"
LOCKED = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
}


def render(overlay: str) -> list[Object]:
    return kustomize.render(DEPLOY / overlay)


def the(kind: str, objects: list[Object]) -> Any:
    (one,) = [one for one in objects if one["kind"] == kind]
    return one


def pod(overlay: str) -> Any:
    return the("DaemonSet", render(overlay))["spec"]["template"]["spec"]


def container(overlay: str, name: str) -> Any:
    spec = pod(overlay)
    (one,) = [one for one in [*spec["containers"], *spec.get("initContainers", [])] if one["name"] == name]
    return one


def way_back() -> Any:
    (job,) = kustomize.load(MIGRATION / "way-back.yaml")
    return job["spec"]["template"]["spec"]


def kube_proxy() -> Object:
    """The essence of kubeadm's DaemonSet."""
    template = {
        "metadata": {"labels": {"k8s-app": "kube-proxy"}},
        "spec": {"nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [{"name": "kube-proxy", "image": "x"}]},
    }
    spec = {"selector": {"matchLabels": {"k8s-app": "kube-proxy"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-proxy"}, "spec": spec}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_would_take_every_object(overlay: str) -> None:
    objects = render(overlay)
    assert {one["kind"] for one in objects} >= {"ClusterRole", "ClusterRoleBinding", "DaemonSet"}
    assert [problem for one in objects for problem in kubernetes_schema.problems(one)] == []


def test_a_server_would_take_what_is_applied_by_hand() -> None:
    (job,) = kustomize.load(MIGRATION / "way-back.yaml")
    assert kubernetes_schema.problems(job) == []
    for file in ("namespace.yaml", "job.yaml"):
        (one,) = kustomize.load(DEPLOY / "bench" / file)
        assert kubernetes_schema.problems(one) == []
    (patch,) = kustomize.load(MIGRATION / "keep-off.yaml")
    assert kubernetes_schema.problems(kube_proxy()) == []
    assert kubernetes_schema.problems(kustomize.merge(kube_proxy(), patch)) == []


DAMAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a misspelt field": (lambda spec: spec.update(hostNetwrk=True), "hostNetwrk"),
    "a name of Python's": (lambda spec: spec.update(host_network=spec.pop("hostNetwork")), "host_network"),
    "a misspelt field, deep": (
        lambda spec: spec["containers"][0]["securityContext"].update(readonlyRootFilesystem=True),
        "readonlyRootFilesystem",
    ),
    "a misspelt field in a list": (lambda spec: spec["tolerations"][0].update(Operator="Exists"), "Operator"),
    "a text for a truth": (lambda spec: spec.update(hostNetwork="true"), "hostNetwork"),
    "a text for a number": (lambda spec: spec.update(terminationGracePeriodSeconds="5"), "terminationGracePeriod"),
    "a map for a list": (lambda spec: spec.update(tolerations={"operator": "Exists"}), "tolerations"),
    "a number among labels": (lambda spec: spec["nodeSelector"].update(rack=7), "nodeSelector"),
    "a container without a name": (lambda spec: spec["containers"][0].pop("name"), "containers.0.name: Field required"),
    "a probe without a port": (
        lambda spec: spec["containers"][0]["livenessProbe"]["httpGet"].pop("port"),
        "httpGet.port: Field required",
    ),
    "a pod without containers": (lambda spec: spec.pop("containers"), "spec.containers: Field required"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_check_of_types_finds(damage: str) -> None:
    daemon_set = copy.deepcopy(the("DaemonSet", render("base")))
    spoil, says = DAMAGES[damage]
    spoil(daemon_set["spec"]["template"]["spec"])
    found = kubernetes_schema.problems(daemon_set)
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("base/kustomization.yaml", "configMapGenerator", "configMapGenerators"),
        ("base/kustomization.yaml", "daemonset.yaml", "deamonset.yaml"),
        ("base/kustomization.yaml", "    options:", "    option:"),
        ("overlays/nftables/kustomization.yaml", "path: mode.yaml", "pathh: mode.yaml"),
        ("overlays/nftables/kustomization.yaml", "patches", "patchesStrategicMerge"),
        ("overlays/nftables/mode.yaml", "name: pyproxy\n  namespace", "name: other\n  namespace"),
        (
            "overlays/nftables/mode.yaml",
            "          args:",
            "          argv: [{}]\n          ports: {}\n          args:",
        ),
        ("overlays/migrate-from-kube-proxy/kustomization.yaml", "$patch: delete", "$patch: remove"),
    ],
)
def test_the_renderer_takes_nothing_that_it_does_not_know(tmp_path: Path, file: str, old: str, new: str) -> None:
    for path in DEPLOY.rglob("*.*"):
        copied = tmp_path / path.relative_to(DEPLOY)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(KustomizeError):
        kustomize.render(tmp_path / "overlays" / "migrate-from-kube-proxy")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_locked_down(overlay: str) -> None:
    spec = pod(overlay)
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert not spec.keys() & {"hostPID", "hostIPC"}
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        context = one["securityContext"]
        assert context.items() >= LOCKED.items(), one["name"]
        assert context["capabilities"]["drop"] == ["ALL"], one["name"]
        assert context.get("runAsNonRoot", False) == ("add" not in context["capabilities"]), one["name"]
        assert one["image"] == f"pyproxy:{__version__}"
        assert one["resources"].keys() == {"requests"}


def test_the_way_back_takes_what_the_mode_with_most_rights_takes() -> None:
    """`pyproxy cleanup` removes what any mode wrote, and reads the tables that kube-proxy has since written."""
    spec = way_back()
    (cleanup,) = spec["containers"]
    with_most = container("overlays/iptables", "pyproxy")
    assert cleanup["args"] == ["cleanup"]
    assert cleanup["securityContext"] == with_most["securityContext"]
    mounts = [*with_most["volumeMounts"], *container("overlays/ebpf", "pyproxy")["volumeMounts"]]
    assert cleanup["volumeMounts"] == [one for one in mounts if one["mountPath"] in (LOCK, PINS)]
    volumes = [*pod("overlays/iptables")["volumes"], *pod("overlays/ebpf")["volumes"]]
    assert spec["volumes"] == [one for one in volumes if one["name"] in ("xtables-lock", "bpf")]


def test_each_container_has_exactly_the_capabilities_that_it_needs() -> None:
    for overlay in OVERLAYS:
        needed = {
            "overlays/iptables": ["NET_ADMIN", "NET_RAW"],
            "overlays/ipvs": ["NET_ADMIN", "NET_RAW"],
            "overlays/userspace": ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"],
            "overlays/ebpf": ["NET_ADMIN", "BPF", "PERFMON", "SYS_ADMIN"],
        }
        found = container(overlay, "pyproxy")["securityContext"]["capabilities"]["add"]
        assert found == needed.get(overlay, ["NET_ADMIN"])
    migration = "overlays/migrate-from-kube-proxy"
    added = {
        one["name"]: one["securityContext"]["capabilities"].get("add")
        for one in [*pod(migration)["containers"], *pod(migration)["initContainers"]]
    }
    assert added == {
        "pyproxy": ["NET_ADMIN"],
        "remove-what-kube-proxy-left": ["NET_ADMIN", "NET_RAW"],
        "wait-for-the-end-of-kube-proxy": None,
    }


def test_the_benchmark_sees_nothing_of_the_node_and_can_do_nothing_in_the_cluster() -> None:
    (job,) = kustomize.load(DEPLOY / "bench" / "job.yaml")
    (namespace,) = kustomize.load(DEPLOY / "bench" / "namespace.yaml")
    assert job["metadata"]["namespace"] == namespace["metadata"]["name"]
    assert job["spec"]["backoffLimit"] == 0
    spec = job["spec"]["template"]["spec"]
    assert spec["nodeName"] == job["metadata"]["name"] == "THE-NODE"
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
    assert spec["automountServiceAccountToken"] is False
    assert [volume["name"] for volume in spec["volumes"] if "emptyDir" not in volume] == []
    (bench,) = spec["containers"]
    assert bench["image"] == f"pyproxy-bench:{__version__}"
    assert bench["securityContext"].items() >= LOCKED.items()
    added = ["SYS_ADMIN", "NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"]
    assert bench["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": added}


@pytest.mark.parametrize("overlay", [*OVERLAYS, "the way back"])
def test_who_can_replace_a_legacy_table_shares_the_host_s_lock_and_nobody_else(overlay: str) -> None:
    """A lock of the container's own would keep nobody out, and the root is read-only."""
    spec = way_back() if overlay == "the way back" else pod(overlay)
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        names = [mount["name"] for mount in one.get("volumeMounts", []) if mount["mountPath"] == LOCK]
        assert bool(names) == ("NET_RAW" in one["securityContext"]["capabilities"].get("add", [])), one["name"]
        for name in names:
            (volume,) = [volume for volume in spec["volumes"] if volume["name"] == name]
            assert volume["hostPath"] == {"path": LOCK, "type": "FileOrCreate"}
            assert {"name": name, "mountPath": LOCK} in one["volumeMounts"]  # and to be written to


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_runs_everywhere_and_is_replaced_node_by_node(overlay: str) -> None:
    daemon_set = the("DaemonSet", render(overlay))
    assert daemon_set["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "10%"},
    }
    template = daemon_set["spec"]["template"]
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    spec = template["spec"]
    assert (spec["hostNetwork"], spec["priorityClassName"]) == (True, "system-node-critical")
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"]["kubernetes.io/os"] == "linux"
    assert spec["terminationGracePeriodSeconds"] <= 10
    names = {volume["name"] for volume in spec["volumes"]}
    mounts = [mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])]
    assert sorted(mounts) == sorted(names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_ports_that_are_served(overlay: str) -> None:
    proxy = container(overlay, "pyproxy")
    ports = {port["name"]: port["containerPort"] for port in proxy["ports"]}
    configuration = yaml.safe_load((DEPLOY / "base" / "config.conf").read_text())
    assert configuration["healthzBindAddress"] == f"0.0.0.0:{ports['healthz']}" == "0.0.0.0:10256"
    assert configuration["metricsBindAddress"] == f"127.0.0.1:{ports['metrics']}" == "127.0.0.1:10249"
    assert all(port["hostPort"] == port["containerPort"] for port in proxy["ports"])
    assert proxy["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "healthz"}
    assert proxy["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "healthz"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rights_are_exactly_those_that_are_used(overlay: str) -> None:
    """See pyproxy.reflector for lists and watches, pyproxy.events for events and the uids of what they are about."""
    objects = render(overlay)
    rights = {
        (group, resource, verb)
        for rule in the("ClusterRole", objects)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    read = [("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")]
    assert rights == {
        *((group, resource, verb) for group, resource in read for verb in ("get", "list", "watch")),
        ("events.k8s.io", "events", "create"),
    }
    (subject,) = the("ClusterRoleBinding", objects)["subjects"]
    assert subject["name"] == pod(overlay)["serviceAccountName"]
    assert the("ClusterRoleBinding", objects)["roleRef"]["name"] == the("ClusterRole", objects)["metadata"]["name"]


def test_the_configuration_is_one_that_pyproxy_takes(capsys: pytest.CaptureFixture[str]) -> None:
    path = DEPLOY / "base" / "config.conf"
    configuration = yaml.safe_load(path.read_text())
    assert configuration["apiVersion"] == "kubeproxy.config.k8s.io/v1alpha1"
    assert configuration["kind"] == "KubeProxyConfiguration"
    main(["config", "check", str(path)])
    told = capsys.readouterr()
    assert (told.err, [line for line in told.out.splitlines() if not line.startswith("mode:")]) == ("", [])
    # The file that it names is in the same ConfigMap, which is mounted where it looks.
    (mount,) = [one for one in container("base", "pyproxy")["volumeMounts"] if one["name"] == "config"]
    kubeconfig = Path(configuration["clientConnection"]["kubeconfig"])
    assert str(kubeconfig.parent) == mount["mountPath"]
    config_map = the("ConfigMap", render("base"))
    assert kubeconfig.name in config_map["data"]
    assert yaml.safe_load(config_map["data"][kubeconfig.name])["kind"] == "Config"
    assert f"--config={mount['mountPath']}/config.conf" in container("base", "pyproxy")["args"]


def test_a_changed_configuration_rolls_the_pods() -> None:
    (volume,) = [one for one in pod("base")["volumes"] if one["name"] == "config"]
    assert volume["configMap"]["name"] == the("ConfigMap", render("base"))["metadata"]["name"]
    assert re.fullmatch(r"pyproxy-[a-z0-9]{10}", volume["configMap"]["name"])


def test_an_overlay_of_a_mode_names_it() -> None:
    for overlay in (path.parent for path in DEPLOY.glob("overlays/*/mode.yaml")):
        arguments = container(f"overlays/{overlay.name}", "pyproxy")["args"]
        assert arguments == [*container("base", "pyproxy")["args"], f"--mode={overlay.name}"]


def test_every_mode_that_is_installed_has_an_overlay() -> None:
    assert {path.parent.name for path in DEPLOY.glob("overlays/*/mode.yaml")} == set(modes.names())


@pytest.mark.parametrize("former", ["iptables", "ipvs", "ebpf"])
def test_nftables_mode_can_be_run_with_the_rights_of_another(former: str) -> None:
    """As deploy/README.md has it: to take over what its own may not touch, and for nodes of several kinds."""
    (patch,) = kustomize.load(DEPLOY / "overlays" / "nftables" / "mode.yaml")
    patched = kustomize.merge(the("DaemonSet", render(f"overlays/{former}")), patch)
    (proxy,) = patched["spec"]["template"]["spec"]["containers"]
    (unpatched,) = pod(f"overlays/{former}")["containers"]
    assert proxy == unpatched | {"args": container("overlays/nftables", "pyproxy")["args"]}


def test_the_migration_can_lead_to_iptables_mode(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / "overlays" / "migrate-from-kube-proxy" / "kustomization.yaml"
    text = path.read_text()
    assert text.count("\n  - ../nftables\n") == 1
    path.write_text(text.replace("  - ../nftables\n", "  - ../iptables\n"))
    spec = the("DaemonSet", kustomize.render(path.parent))["spec"]["template"]["spec"]
    (proxy,) = [one for one in spec["containers"] if one["name"] == "pyproxy"]
    assert proxy == container("overlays/iptables", "pyproxy")
    assert sorted(volume["name"] for volume in spec["volumes"]) == ["config", "tmp", "xtables-lock"]


def test_the_migration_takes_what_kube_proxy_has_and_shares_no_node_with_it() -> None:
    spec = pod("overlays/migrate-from-kube-proxy")
    assert spec["serviceAccountName"] == "kube-proxy"
    (volume,) = [one for one in spec["volumes"] if one["name"] == "config"]
    assert volume["configMap"] == {"name": "kube-proxy"}
    assert {one["kind"] for one in render("overlays/migrate-from-kube-proxy")} == {
        "ClusterRole",
        "ClusterRoleBinding",
        "DaemonSet",
    }
    ((label, value),) = spec["nodeSelector"].items() - {("kubernetes.io/os", "linux")}
    patched = kustomize.merge(kube_proxy(), kustomize.load(MIGRATION / "keep-off.yaml")[0])
    affinity = patched["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": label, "operator": "NotIn", "values": [value]}]}


@pytest.mark.parametrize("name", ["wait-for-the-end-of-kube-proxy", "remove-what-kube-proxy-left"])
def test_the_steps_of_the_migration_are_python(name: str) -> None:
    (text,) = container("overlays/migrate-from-kube-proxy", name)["args"]
    compile(text, name, "exec")


@pytest.mark.parametrize("lock", ["requirements.lock", "bench.lock", "build.lock"])
def test_the_image_holds_the_versions_that_are_tested(lock: str) -> None:
    tested = pins((DEPLOY.parent / "requirements.lock").read_text())
    shipped = pins((DEPLOY / lock).read_text())
    assert shipped
    assert {name: pin for name, pin in shipped.items() if tested.get(name) != pin} == {}


def test_the_image_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    for lock, wanted in {
        "requirements.lock": project["project"]["dependencies"],
        "bench.lock": project["project"]["dependencies"] + project["project"]["optional-dependencies"]["bench"],
        "build.lock": project["build-system"]["requires"],
    }.items():
        names = {re.split(r"[<>=~! ]", one)[0].lower().replace("_", "-") for one in wanted}
        assert names <= pins((DEPLOY / lock).read_text()).keys()


def pins(lock: str) -> dict[str, frozenset[str]]:
    """By name: the version and its hashes."""
    entries = re.split(r"^(?=[a-z0-9])", re.sub(r" *#.*", "", lock), flags=re.MULTILINE)[1:]
    return {entry.split("==")[0]: frozenset(entry.replace("\\", "").split()) for entry in entries}
