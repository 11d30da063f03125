"""`pyproxy bench` as its user meets it: one command, a mode and another proxy, tables, a file, a report."""

import subprocess
import sys
from pathlib import Path

from bench.contestant import CONTROL, FLOOR
from bench.document import Document


def test_one_command_measures_a_mode_and_another_proxy_and_draws_a_report(tmp_path: Path) -> None:
    file, folder = tmp_path / "results.json.gz", tmp_path / "report"
    peer = f"other:nftables={sys.executable} -m pyproxy run --config {{config}} --hostname-override {{node}}"
    options = ["--mode", "userspace", "--peer", peer, "--services", "2", "--json", str(file), "--report", str(folder)]
    command = [sys.executable, "-m", "pyproxy", "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    said = Document.read(file)
    assert said.complete
    assert [one.key for one in said.outcomes] == [
        "latency, 2 x 2",
        "sync, userspace, 2 x 2",
        "sync, other:nftables, 2 x 2",
    ]
    latency, *syncs = said.outcomes
    assert {figure.contestant for figure in latency.figures} == {FLOOR, CONTROL, "userspace", "other:nftables"}
    assert {"first-sync", "change", "rolling-update", "resident"} <= {figure.measure for figure in syncs[1].figures}
    assert "p50, as a ratio to the floor's" in done.stdout
    assert done.stderr.endswith(f"the report is {folder / 'index.html'}\n")
    assert {"index.html", "results.json", "latency-connect-ratio.svg", "latency-connect-ratio.png"} <= {
        path.name for path in folder.iterdir()
    }
