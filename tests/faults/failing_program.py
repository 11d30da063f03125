"""A program of the machine that fails while a file says so."""

import os
import shutil
from pathlib import Path

import pytest

# Says what a kernel that is short of memory says.
_WRAPPER = """#!/bin/sh
if [ -e {flag} ]; then
    cat > /dev/null
    echo "Error: Could not process rule: Cannot allocate memory" >&2
    exit 1
fi
exec {program} "$@"
"""


def stand_before(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Put a wrapper of program ``name`` into ``folder`` and first on PATH. While the returned file exists, it fails."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    wrapper, flag = folder / name, folder / "fail"
    wrapper.write_text(_WRAPPER.format(flag=flag, program=program))
    wrapper.chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return flag
