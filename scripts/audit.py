"""`make check`: installed packages are pinned, the package allows the pins, no file holds a secret.

This works without a network. Known holes in dependencies need one: `pip-audit -r requirements.txt`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from messaging import __version__

ROOT = Path(__file__).resolve().parent.parent
#: The pins of what runs: the ranges of the package have to include them.
RUNS = {"requirements.txt", "requirements-server.txt"}
#: What every virtual environment contains.
OF_THE_ENVIRONMENT = {"pip", "setuptools", "wheel"}
#: Passwords that are not secret: RabbitMQ's default for loopback, and those made up for tests and examples.
KNOWN_PASSWORDS = r"^(guest|password|SECRET|hush.*|s3cr.*|secret.*|not-.*|example.*|\$\{?[A-Z_]+.*|\{.*)$"


def main() -> int:
    """Print every problem; return 0 if there are none."""
    findings = [
        *unpinned(),
        *mismatched(),
        *not_allowed(),
        *other_versions(),
        *_output("pip check", sys.executable, "-m", "pip", "check"),
    ]
    findings += secrets()
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


def requirements() -> list[tuple[str, str]]:
    """Return (file, requirement) of each line that names one."""
    found = []
    for file in sorted(ROOT.glob("requirements*.txt")):
        for line in file.read_text().splitlines():
            text = re.sub(r"(^|\s)#.*", "", line).strip()
            if text and not text.startswith("-"):
                found.append((file.name, text))
    return found


def unpinned() -> list[str]:
    """Return the requirements that do not name exactly one version."""
    return [
        f"{file}: {text} is not pinned" for file, text in requirements() if not re.search(r"==[^*;]+", text)
    ]


def mismatched() -> list[str]:
    """Return packages installed in another version than pinned, and dependencies that are not pinned."""
    installed = {canonicalize_name(dist.name): dist for dist in distributions()}
    wanted = [(file, Requirement(text)) for file, text in requirements()]
    pinned = {canonicalize_name(one.name) for _, one in wanted} | OF_THE_ENVIRONMENT
    problems = []
    for file, one in wanted:
        dist = installed.get(canonicalize_name(one.name))
        if dist is None or not _applies(one):
            continue
        if not one.specifier.contains(dist.version, prereleases=True):
            problems.append(f"{file} says {one}, installed is {dist.version}")
        needs = {
            canonicalize_name(need.name) for need in map(Requirement, dist.requires or ()) if _applies(need)
        }
        problems += [f"{file}: {one.name} needs {name}, which is not pinned" for name in needs - pinned]
    return problems


def package() -> dict[str, Any]:
    """Return the package's table in pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def not_allowed() -> list[str]:
    """Return the package's ranges that exclude the pinned version, which is the one that is tested."""
    pins = {
        canonicalize_name(one.name): one.specifier
        for one in (Requirement(text) for file, text in requirements() if file in RUNS)
    }
    ranges = [*package()["dependencies"], *chain(*package()["optional-dependencies"].values())]
    found = []
    for one in map(Requirement, ranges):
        pin = next(iter(pins.get(canonicalize_name(one.name), ())), None)
        if one.name != package()["name"] and (pin is None or not one.specifier.contains(pin.version)):
            found.append(f"pyproject.toml says {one}, pinned is {pin or 'nothing'}")
    return found


def other_versions() -> list[str]:
    """Return the files that name another version of the package."""
    said = package()["version"]
    found = [] if said == __version__ else [f"pyproject.toml is {said}, messaging/__init__.py {__version__}"]
    if f"## [{said}]" not in (ROOT / "CHANGELOG.md").read_text():
        found.append(f"CHANGELOG.md has no section {said}")
    return found


def _applies(one: Requirement) -> bool:
    """Tell whether a requirement applies on this platform, without extras."""
    return one.marker is None or one.marker.evaluate({"extra": ""})


def secrets() -> list[str]:
    """Return findings that look like a password or a key in the tracked files."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, text=True, capture_output=True)  # noqa: S607
    if listing.returncode != 0:
        print("no secret scan: this is not a git repository", file=sys.stderr)
        return []
    hook = str(Path(sys.executable).with_name("detect-secrets-hook"))
    options = ("--no-verify", "--exclude-secrets", KNOWN_PASSWORDS)
    return _output("secret scan", hook, *options, *listing.stdout.splitlines())


def _output(what: str, *command: str) -> list[str]:
    """Return a program's output if it reports a problem."""
    result = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    return [f"{what}: {result.stdout}{result.stderr}".strip()] if result.returncode else []


if __name__ == "__main__":
    sys.exit(main())
