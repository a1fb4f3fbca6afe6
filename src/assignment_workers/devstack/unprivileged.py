"""The start of a program under another account, if the program refuses to run as root.

The program, such as `postgres`, needs our directories, which are private to root. The directories
above them, and those above the program, may be private to root as well (`/root` is on most
machines). This module does not open any of these directories to everybody. It runs the program in
one of two ways:

1. The program runs as another account, and keeps one capability of root: CAP_DAC_OVERRIDE, which
permits access to every file. The module also sets the secure bit SECBIT_NO_SETUID_FIXUP, because
`initdb` and `postgres` test their rights with `access(2)`. Without that bit, `access(2)` ignores
the capabilities of any account but root.

2. Some containers lack the capabilities for the first way. There the program runs in a user
namespace, which maps one uid inside to one uid outside. Inside the namespace, the program has the
uid of an account other than root, so it does not refuse to run. Outside the namespace, the program
has root's uid. When the program opens a file, the kernel checks the uid outside. So the program may
use directories that are private to root.

If this file is run as a script, it changes its own process in one of these ways, and then executes
the program in that process.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

ACCOUNT = "pgserver"
"""The system account that runs PostgreSQL if we are root. The wheel of the embedded PostgreSQL uses
the same account name.
"""
FALLBACK = "nobody"
TEST_ONLY = "?"
"""The value of the argument `PROGRAM` of `main` that asks for a test of the account's rights.

With this value, `main` executes no program. Instead, it tests whether the account may execute a
program and write in a directory. The next two arguments are the paths of that program and of that
directory.
"""
PROBE_SECONDS = 10

# From linux/prctl.h, linux/securebits.h, linux/capability.h and linux/sched.h.
PR_SET_KEEPCAPS = 8
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 4
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_KILL = 5
CLONE_NEWUSER = 0x10000000


class Account(NamedTuple):
    """An account to run a program as, and the way to change to it."""

    uid: int
    gid: int
    way: Literal["account", "namespace"]

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` as this account.

        Only root may run that command.
        """
        return [sys.executable, "-I", "-S", __file__, self.way, str(self.uid), str(self.gid), *argv]


def account_for(program: Path, data: Path) -> Account | None:
    """Return the account that is to run `program` on `data`; None if this process is not root's.

    None means that no change of account is needed. `data` is the data directory, which need not
    exist yet. The directory that contains `data` must exist. If an account other than root owns the
    data, that account is returned. If root owns the data, or if there is no data yet, the system
    account `ACCOUNT` is returned, and created if needed. If `ACCOUNT` cannot be created, the
    account `FALLBACK` is returned. If `FALLBACK` is missing too, the first account of the system
    that is not root's is returned. Raises `StackFailed`, with one line, if there is no such
    account, or if this process cannot run the program as that account.
    """
    if os.geteuid() != 0:
        return None
    reasons = []
    for account in _candidates(data):
        reason = _obstacle(account, program, data.parent)
        if reason is None:
            return account
        reasons.append(reason)
    from assignment_workers.runtime.errors import StackFailed  # unknown to the file run by path

    raise StackFailed(
        "PostgreSQL refuses to run as root, and root cannot run it as another account here "
        f"({'; '.join(dict.fromkeys(reasons))}): start as an ordinary user, set DATABASE_URL, "
        "or give the container CAP_SETUID, CAP_SETGID, CAP_SETPCAP, CAP_KILL and CAP_DAC_OVERRIDE"
    )


def _candidates(data: Path) -> list[Account]:
    if data.exists() and (found := data.stat()).st_uid != 0:
        return [Account(found.st_uid, found.st_gid, "account")]
    entry = _entry(ACCOUNT) or _made() or _entry(FALLBACK)
    entry = entry or next((each for each in pwd.getpwall() if each.pw_uid != 0), None)
    if entry is None:
        return []
    here = Account(entry.pw_uid, entry.pw_gid, "namespace")
    return [here] if data.exists() else [here._replace(way="account"), here]


def _obstacle(account: Account, program: Path, folder: Path) -> str | None:
    """Return the reason why `account` cannot be used, or None if it can be used.

    To be used, the account must have the right to execute `program` and to write in `folder`. A
    process that changes to the account tests these rights; `program` itself is not executed.

    There are two ways to change to an account (`Account.way`). In the way `account`, the program's
    processes run under another uid than root's. To end them, this process needs the capability
    CAP_KILL. In the way `namespace`, the program's processes still have root's uid outside their
    namespace. Therefore this process can end them without CAP_KILL.
    """
    if account.way == "account" and not _may(CAP_KILL):
        return "CAP_KILL is missing, and its processes could not be ended"
    done = subprocess.run(
        account.command([TEST_ONLY, str(program), str(folder)]),
        check=False,
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
    )
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return said[-1].removeprefix("FATAL: ")


def _may(capability: int) -> bool:
    """Return True if this process has the capability, or if the system does not use capabilities.

    Capabilities are the parts into which Linux divides the rights of root. On another system, root
    has all rights.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    effective = status.partition("CapEff:")[2].split()
    return not effective or bool(int(effective[0], 16) >> capability & 1)


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
    """Change to another account and execute a program: `WAY UID GID PROGRAM ARGUMENT...`.

    `WAY`, the way to change to the account, is `account` or `namespace`. If `PROGRAM` is the value
    of `TEST_ONLY`, no program is executed; only the rights of the account are tested. Exits with a
    one-line error if any of this fails.
    """
    way, uid, gid, program, *arguments = sys.argv[1:]
    try:
        if way == "namespace":
            _enter_namespace(int(uid), int(gid))
        else:
            _become(int(uid), int(gid))
    except OSError as error:
        sys.exit(f"FATAL: root cannot become user {uid} (by {way}): {error.strerror}")
    if program == TEST_ONLY:
        _probe(*arguments)
        return
    try:
        os.execv(program, [program, *arguments])  # noqa: S606
    except OSError as error:
        sys.exit(f"FATAL: user {uid} cannot run {program}: {error.strerror}")


def _become(uid: int, gid: int) -> None:
    keeps = sys.platform == "linux" and _prctl(PR_SET_KEEPCAPS, 1)
    if keeps:
        bits = ctypes.CDLL(None).prctl(PR_GET_SECUREBITS, 0, 0, 0, 0)
        _prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP)  # needs CAP_SETPCAP
    os.setgroups([])
    os.setregid(gid, gid)
    os.setreuid(uid, uid)
    if keeps:
        _keep_access()


def _keep_access() -> None:
    """Keep the capability CAP_DAC_OVERRIDE for the program that this process executes next.

    With the capability, the program may use our directories, which are private to root. If a
    sandbox forbids the capability, normal file permissions apply.
    """
    libc = ctypes.CDLL(None)
    bit = 1 << CAP_DAC_OVERRIDE
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    if libc.capset(header, struct.pack("6I", bit, bit, bit, 0, 0, 0)) == 0:
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)
    else:  # keep nothing that the account would not have
        libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0))


def _enter_namespace(uid: int, gid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), f"no user namespace: {os.strerror(ctypes.get_errno())}")
    for name, words in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} 0 1"),
        ("gid_map", f"{gid} 0 1"),
    ):
        Path("/proc/self", name).write_text(words, encoding="ascii")


def _probe(program: str, folder: str) -> None:
    """Test the rights of this account: to run the program, and to write in the folder.

    Exits with a one-line error if a right is missing.
    """
    if not os.access(program, os.X_OK):
        sys.exit(f"user {os.geteuid()} may not run {program}")
    try:
        os.rmdir(tempfile.mkdtemp(prefix="new-", dir=folder))  # noqa: PTH106
    except OSError as error:
        sys.exit(f"user {os.geteuid()} may not write in {folder}: {error.strerror}")


def _prctl(*arguments: int) -> bool:
    padded = [*arguments, 0, 0, 0, 0][:5]
    return bool(ctypes.CDLL(None).prctl(*map(ctypes.c_ulong, padded)) == 0)


if __name__ == "__main__":
    main()
