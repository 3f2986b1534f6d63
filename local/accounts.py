"""Which account the servers run as: PostgreSQL refuses root, and a Redis without a password should not be."""

import fcntl
import os
import pwd
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

#: Root's alone, and there on every Linux and macOS.
_LOCK_FILE = Path("/var/run/allocation-accounts.lock")

_NAME = "pgserver"  # the account that the PostgreSQL wheel itself makes when it is started by root


def account_for(folder: Path) -> pwd.struct_passwd | None:
    """Return whom a server over `folder` runs as: None (ourselves) unless we are root.

    Root runs it as the folder's owner, so that data made by a normal user stays that user's.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat().st_uid) != 0:
        with suppress(KeyError):
            return pwd.getpwuid(owner)
    return _unprivileged()


def give(folder: Path, account: pwd.struct_passwd | None) -> None:
    """Make `folder` for the account alone, and let the account walk there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if account is None:
        return
    os.chown(folder, account.pw_uid, account.pw_gid)
    let_pass(folder)


def let_pass(path: Path) -> None:
    """Allow walking through (not listing) the parents of `path`, where that is not allowed yet."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _unprivileged() -> pwd.struct_passwd:
    """Return the servers' account, made when it is missing, else nobody's."""
    # Two that make it at once: one sees it before the other fails and takes it back.
    with _LOCK_FILE.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(_NAME)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME]
            with suppress(OSError):
                subprocess.run(command, check=False, capture_output=True)
    try:
        return pwd.getpwnam(_NAME)
    except KeyError:
        return pwd.getpwnam("nobody")
