"""The size of a project on the bus."""

import subprocess
import sys
from pathlib import Path

from examples import vip_customers
from local import ROOT

FOLDER = Path(vip_customers.__file__).parent


def test_the_shop_has_less_than_250_lines_of_its_own():
    files = [file for file in FOLDER.rglob("*.py") if "demo" not in file.relative_to(FOLDER).parts]

    assert sum(len(file.read_text().splitlines()) for file in files) < 250


def test_a_worker_of_the_shop_never_imports_the_allocation_domain():
    code = "import sys, examples.vip_customers.tasks; print([m for m in sys.modules if 'allocation' in m])"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, text=True, capture_output=True, timeout=60
    )

    assert done.stdout.strip() == "[]"
