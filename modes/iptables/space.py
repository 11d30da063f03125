"""What trees branch on: destination addresses, or ports."""

from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256

from pyproxy.kernel.iptables_dialect import Dialect

_LONGEST_NAME = 28  # XT_EXTENSION_MAXNAMELEN less the end


@dataclass(frozen=True, slots=True)
class Addresses:
    d: Dialect
    letter: str
    """Tells the chains of one tree from another's."""

    @property
    def bits(self) -> int:
        return self.d.bits

    def chain(self, first: int, length: int) -> str:
        name = f"PYPROXY-{self.letter}-{self.d.address(first)}/{length}"
        if len(name) <= _LONGEST_NAME:
            return name
        digest = b32encode(sha256(name.encode()).digest()).decode()
        return f"PYPROXY-{self.letter}-{digest[:14]}/{length}"

    def match(self, first: int, length: int) -> str:
        return f"-d {self.d.address(first)}/{length}"


@dataclass(frozen=True, slots=True)
class Ports:
    protocol: str
    bits: int = 16

    def chain(self, first: int, length: int) -> str:
        return f"PYPROXY-{self.protocol.upper()}-{self._range(first, length)}"

    def match(self, first: int, length: int) -> str:
        return f"-p {self.protocol} -m {self.protocol} --dport {self._range(first, length)}"

    def _range(self, first: int, length: int) -> str:
        last = first + (1 << self.bits - length) - 1
        return str(first) if first == last else f"{first}:{last}"
