"""The README's ten-line sender does what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.usefixtures("worker")
def test_the_ten_line_sender_runs_unchanged(broker, tmp_path):
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Celery(" in block]
    ours = lines.replace("redis://127.0.0.1:6390/0", broker.broker_url)
    ours = ours.replace("redis://127.0.0.1:6390/1", broker.result_backend_url)

    ran = subprocess.run(
        [sys.executable, "-I", "-c", ours],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.stdout.strip(), ran.returncode) == ("batch-1", 0), ran.stderr
