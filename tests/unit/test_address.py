"""Text that is an address or a range, and text that only looks like one."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.address import (
    IP,
    Family,
    Prefix,
    collapse,
    contains,
    family_of,
    parse_ip,
    parse_prefix,
    shorten,
    why_not_an_endpoint,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.96.0.1", "10.96.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255"),
        ("fd00::1", "fd00::1"),
        ("FD00::00AB", "fd00::ab"),
        ("fd00:0:0:0:0:0:0:1", "fd00::1"),
        ("::", "::"),
        ("2001:db8::192.0.2.1", "2001:db8::c000:201"),
    ],
)
def test_an_address_becomes_canonical(text: str, canonical: str) -> None:
    assert parse_ip(text) == canonical


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "10.0.0", "10.0.0.1.2", "256.0.0.1", "010.0.0.1", "0x0a.0.0.1", "167772161", "10.0.0.1 ",
     " 10.0.0.1", "10.0.0.1\n", "10.0.0.1\0", "10.0.0.1/32", "10.0.0.-1", "\u0661\u0660.0.0.1", ":", ":::",
     "fd00::1::2", "fd00::g", "[fd00::1]", "fe80::1%eth0", "fd00::1\0", "fd00::/64", "1:2:3:4:5:6:7:8:9",
     "\ud800", "a" * 10_000],
    ids=shorten,
)  # fmt: skip
def test_what_is_no_address_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address") as caught:
        parse_ip(text)
    assert str(caught.value) == f"{shorten(text)} is not an IP address"


@pytest.mark.parametrize("text", ["::ffff:10.0.0.1", "::FFFF:0a00:0001", "0:0:0:0:0:ffff:127.0.0.1"])
def test_mapped_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it as IPv4"):
        parse_ip(text)


@given(st.ip_addresses())
def test_every_address_but_mapped_ones_is_read_as_python_reads_it(address: ipaddress.IPv4Address) -> None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return
    parsed = parse_ip(str(address))
    assert ipaddress.ip_address(parsed) == address
    assert parse_ip(parsed) == parsed
    assert parse_ip(address.exploded) == parsed
    assert family_of(parsed).value == f"IPv{address.version}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        (" 10.0.0.0/8\t\n", "10.0.0.0/8"),
        ("10.0.0.1/32", "10.0.0.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("198.51.100.7/0", "0.0.0.0/0"),
        ("FD00::1/64", "fd00::/64"),
        ("::/0", "::/0"),
    ],
)
def test_a_range_becomes_canonical(text: str, canonical: str) -> None:
    assert parse_prefix(text) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "/", "/8", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/x",
     "10.0.0.0 /8", "10.0.0.0/ 8", "10.0.0/8", "fd00::/129", "fd00::", "::ffff:10.0.0.0/104", "fe80::%eth0/64",
     "10.0.0.0/\u0668", "10.0.0.0/8\0", "10.0.0.0/8; drop", "x" * 10_000],
    ids=shorten,
)  # fmt: skip
def test_what_is_no_range_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not a range such as") as caught:
        parse_prefix(text)
    assert str(caught.value) == f"{shorten(text)} is not a range such as 10.0.0.0/8 or fd00::/64"


@pytest.mark.parametrize(
    ("prefix", "address", "inside"),
    [
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.0.0.1/32", "10.0.0.1", True),
        ("0.0.0.0/0", "203.0.113.9", True),
        ("0.0.0.0/0", "fd00::1", False),
        ("::/0", "10.0.0.1", False),
        ("fd00::/64", "fd00::ffff", True),
    ],
)
def test_what_lies_in_a_range(prefix: str, address: str, inside: bool) -> None:
    assert contains(Prefix(prefix), IP(address)) is inside


@pytest.mark.parametrize(
    ("prefixes", "fewest"),
    [
        ([], []),
        (["10.0.0.0/8"], ["10.0.0.0/8"]),
        (["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"], ["10.0.0.0/8"]),
        (["10.128.0.0/9", "10.0.0.0/9"], ["10.0.0.0/8"]),
        (["192.0.2.0/24", "10.0.0.0/8"], ["10.0.0.0/8", "192.0.2.0/24"]),
        (["fd00::/65", "fd00:0:0:0:8000::/65"], ["fd00::/64"]),
    ],
    ids=str,
)
def test_collapsing_ranges(prefixes: list[str], fewest: list[str]) -> None:
    assert list(collapse(map(Prefix, prefixes))) == fewest


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.244.1.1", None),
        ("128.0.0.1", None),
        ("169.253.255.255", None),
        ("fd00::1", None),
        ("::2", None),
        ("0.0.0.0", "is the unspecified address"),
        ("::", "is the unspecified address"),
        ("127.0.0.0", "is a loopback address"),
        ("127.255.255.255", "is a loopback address"),
        ("::1", "is a loopback address"),
        ("169.254.0.0", "is a link-local address"),
        ("169.254.255.255", "is a link-local address"),
        ("fe80::", "is a link-local address"),
        ("febf::1", "is a link-local address"),
        ("224.0.0.1", "is a multicast address"),
        ("239.255.255.255", "is a multicast address"),
        ("ff02::1", "is a multicast address"),
    ],
)
def test_which_addresses_no_endpoint_may_have(address: str, reason: str | None) -> None:
    assert why_not_an_endpoint(IP(address)) == reason


@given(st.ip_addresses() | st.ip_addresses(network="fe00::/7") | st.ip_addresses(network="::/120"))
def test_python_finds_the_same_addresses_unfit_for_endpoints(address: ipaddress.IPv4Address) -> None:
    if address in ipaddress.ip_network("0.0.0.0/8"):
        return  # "this network"; Python calls only its first address special
    unfit = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    assert (why_not_an_endpoint(IP(str(address))) is not None) == unfit


def test_families_are_named_as_slices_name_them() -> None:
    assert {family.value for family in Family} == {"IPv4", "IPv6"}
    assert family_of(Prefix("::/0")) is Family.IPV6
    assert family_of(Prefix("0.0.0.0/0")) is Family.IPV4


@given(st.text(max_size=200))
def test_a_shortened_text_is_one_printable_bounded_line(text: str) -> None:
    short = shorten(text)
    assert short.isascii()
    assert short.isprintable()
    assert len(short) <= 10 * 61 + 2


def test_a_text_is_shortened_only_if_it_is_long() -> None:
    assert shorten("a" * 60) == f"'{'a' * 60}'"
    assert shorten("a" * 61) == f"'{'a' * 60}\\u2026'"
