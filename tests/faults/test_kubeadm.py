"""The ConfigMap of a kubeadm cluster, as it is, with the arguments and mounts of kube-proxy's DaemonSet."""

from pathlib import Path

import pytest

from bench.api_server import ApiServer
from bench.ask import ask
from bench.lab import NODE_NAME, Lab
from bench.subject import Subject
from tests.conformance.cluster import Candidate, until
from tests.conformance.manifests import addresses, node, service, slices, target

# The two keys of kube-proxy's ConfigMap, as kubeadm writes them.
CONFIG = Path(__file__).parents[1] / "unit" / "data" / "kubeadm-config.conf"
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: https://172.18.0.2:6443
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
"""
# What kubelet mounts into the pod, in a mount namespace of the proxy's own. "$0" and "$1" are the folders.
MOUNTS = (
    "mount -t tmpfs none /var/lib && mount -t tmpfs none /run && "
    "mkdir -p /run/secrets/kubernetes.io/serviceaccount && "
    'mount --bind "$0" /run/secrets/kubernetes.io/serviceaccount && '
    'mkdir /var/lib/kube-proxy && cp "$1"/* /var/lib/kube-proxy && shift && exec "$@"'
)


@pytest.mark.parametrize(
    ("is_in_cluster", "mode"),
    [(False, ""), (True, ""), (False, "iptables")],
    ids=["kubeconfig.conf", "in-cluster", "iptables"],
)
def test_kube_proxys_config_map_works_unchanged(lab: Lab, tmp_path: Path, is_in_cluster: bool, mode: str) -> None:
    """Without a kubeconfig, kubelet's environment says where the API server is, and the account who we are."""
    account, configuration = tmp_path / "account", tmp_path / "configuration"
    account.mkdir()
    (account / "token").write_text("of-kube-proxy")
    configuration.mkdir()
    text = CONFIG.read_text().replace('mode: ""', f'mode: "{mode}"')
    if is_in_cluster:
        text = text.replace("kubeconfig: /var/lib/kube-proxy/kubeconfig.conf", 'kubeconfig: ""')
        environment = [f"KUBERNETES_SERVICE_HOST={lab.node.ipv4}", "KUBERNETES_SERVICE_PORT=6443"]
    else:
        (configuration / "kubeconfig.conf").write_text(KUBECONFIG)
        environment = []
    (configuration / "config.conf").write_text(text)
    command = ["env", *environment, "unshare", "--mount", "sh", "-c", MOUNTS, str(account), str(configuration)]
    command += [*Candidate("").command[:3], "run"]
    command += ["--config=/var/lib/kube-proxy/config.conf", f"--hostname-override={NODE_NAME}", *lab.flags]
    api = ApiServer(account, lab.node.namespace, host=lab.node.ipv4, tokens=["of-kube-proxy"])
    api.port = 6443
    log = tmp_path / "log"
    with api, log.open("wb") as sink:
        api.apply([node(), service(1), *slices(1, ["pod-2", "pod-3"])])
        Subject(lab, command, sink)
        until(lambda: _pod(lab) in ("pod-2", "pod-3"), log.read_text)
        assert ask(lab.client, *target(1, "NodePort", "IPv6", "TCP")).source == lab.node.ipv6
    assert f"mode={mode or 'ebpf'}" in log.read_text()
    assert "in vain" not in log.read_text()


def _pod(lab: Lab) -> str | None:
    try:
        return ask(lab.pods["pod-1"], addresses(1)["ClusterIP"]["IPv4"], 80, timeout=0.3).pod
    except OSError:
        return None
