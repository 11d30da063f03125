import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mode", default="nftables", help="the mode of pyproxy to prove (default: nftables)")
