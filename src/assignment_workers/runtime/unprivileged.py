"""Runs a program that refuses to run as root, as another account.

Our directories are private to root, and the account could not pass them. Rather than open them (and
every directory above, up to a home of root's) to everybody, the program keeps one capability:
CAP_DAC_OVERRIDE, which lets it pass permissions of files. Run by its path, this file changes the
account and becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ACCOUNT = "pgserver"
"""The name that the wheel of the embedded PostgreSQL uses for the same."""
FALLBACK = "nobody"

# From linux/prctl.h and linux/capability.h.
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1


class Account(NamedTuple):
    """Who a program runs as."""

    uid: int
    gid: int

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` run as this account; for a process of root."""
        return [sys.executable, "-I", "-S", __file__, str(self.uid), str(self.gid), *argv]


def account_for(directory: Path) -> Account | None:
    """Who is to work on `directory`; None when this process itself can, not being root.

    The owner of the directory; if there is none yet, or it is root's, a system account made for
    this where it does not exist.
    """
    if os.geteuid() != 0:
        return None
    if directory.exists() and (found := directory.stat()).st_uid != 0:
        return Account(found.st_uid, found.st_gid)
    entry = _entry(ACCOUNT) or _made() or pwd.getpwnam(FALLBACK)
    return Account(entry.pw_uid, entry.pw_gid)


def _made() -> pwd.struct_passwd | None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd:
        options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([useradd, *options, ACCOUNT], check=False, capture_output=True, timeout=10)
    return _entry(ACCOUNT)


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def main() -> None:
    """Become the program: `UID GID PROGRAM ARGUMENT...`."""
    uid, gid, program, *arguments = sys.argv[1:]
    keeps = sys.platform == "linux" and _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setregid(int(gid), int(gid))
    os.setreuid(int(uid), int(uid))
    if keeps:
        _keep_access()
    try:
        os.execv(program, [program, *arguments])  # noqa: S606
    except OSError as error:
        sys.exit(f"FATAL: user {uid} cannot run {program}: {error.strerror}")


def _keep_access() -> None:
    """Keep one capability across exec. Where a sandbox forbids it, plain permissions decide."""
    libc = ctypes.CDLL(None)
    bit = 1 << CAP_DAC_OVERRIDE
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    sets = struct.pack("6I", bit, bit, bit, 0, 0, 0)
    if libc.capset(header, sets) == 0:
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def _prctl(*arguments: int) -> bool:
    padded = [*arguments, 0, 0, 0, 0][:5]
    return bool(ctypes.CDLL(None).prctl(*map(ctypes.c_ulong, padded)) == 0)


if __name__ == "__main__":
    main()
