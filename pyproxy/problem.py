"""What an operator must hear about an object: which one, which field, and why it was not obeyed."""

from typing import NamedTuple

from pyproxy.objects import Key


class Problem(NamedTuple):
    """One field that is not obeyed. The parts are printable whatever the object held."""

    kind: str
    key: Key
    field: str
    reason: str
    code: str = "NotObeyed"
    """One word for the reason of an Event of the API: NotObeyed, NotSupported or Conflict."""

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.kind} {self.key}: {where}{self.reason}"
