"""`make check`: what is installed is what is pinned, and no tracked file holds a secret.

Both work without a network. Known holes in dependencies need one: `pip-audit -r requirements.txt`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
#: What a virtual environment brings itself.
OF_THE_ENVIRONMENT = {"pip", "setuptools", "wheel"}
#: Passwords that are no secrets: RabbitMQ's own for loopback, and what tests and examples make up.
KNOWN_PASSWORDS = r"^(guest|password|SECRET|hush.*|s3cr.*|secret.*|not-.*|example.*|\$\{?[A-Z_]+.*|\{.*)$"


def main() -> int:
    """Print what is wrong; 0 when nothing is."""
    findings = [*unpinned(), *mismatched(), *_output("pip check", sys.executable, "-m", "pip", "check")]
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
    """Return what is installed in another version than pinned, or needed by it and not pinned."""
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


def _applies(one: Requirement) -> bool:
    """Tell whether a requirement holds on this platform, without extras."""
    return one.marker is None or one.marker.evaluate({"extra": ""})


def secrets() -> list[str]:
    """Return what looks like a password or a key in the tracked files."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, text=True, capture_output=True)  # noqa: S607
    if listing.returncode != 0:
        print("no secret scan: this is no git repository", file=sys.stderr)
        return []
    hook = str(Path(sys.executable).with_name("detect-secrets-hook"))
    options = ("--no-verify", "--exclude-secrets", KNOWN_PASSWORDS)
    return _output("secret scan", hook, *options, *listing.stdout.splitlines())


def _output(what: str, *command: str) -> list[str]:
    """Return what a program prints when it finds something."""
    result = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    return [f"{what}: {result.stdout}{result.stderr}".strip()] if result.returncode else []


if __name__ == "__main__":
    sys.exit(main())
