import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mode", default="nftables", help="the mode of the proxy to prove (default: nftables)")
    parser.addoption("--iptables", choices=["legacy", "nft"], help="the flavour that the node says it uses")
    parser.addoption(
        "--proxy-command",
        metavar="COMMAND",
        help="prove another proxy than this pyproxy: its command line, with {config}, {kubeconfig}, {node}, {mode}",
    )
