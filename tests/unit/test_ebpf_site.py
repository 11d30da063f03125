"""What ebpf mode takes of its node: ports."""

import pytest

from modes.ebpf.site import ports_beside


@pytest.mark.parametrize(
    ("first", "last", "ports"),
    [
        (32768, 60999, range(1024, 30000)),  # the kernel's default
        (10240, 65535, range(1024, 10240)),
        (16384, 24575, range(32768, 65536)),  # above node ports there are more
        (1024, 40000, range(40001, 65536)),
        (1024, 65535, range(61000, 65536)),  # nothing is left
    ],
)
def test_ports_are_none_that_sockets_get(first: int, last: int, ports: range) -> None:
    assert ports_beside(first, last) == ports
