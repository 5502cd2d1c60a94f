"""What processes there are, and what they listen on."""

import subprocess
from pathlib import Path

# 127.0.0.1, and the same as an IPv6 address, as the kernel writes them on a little-endian machine.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def living():
    """Return the processes that have not ended: their ids to their parents'."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def descendants(ancestor):
    """Return the ids of the processes below one."""
    found, parents = {ancestor}, living()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def listens(pid):
    """Return the name of a process with each address, as the kernel writes it, that it listens on."""
    try:
        of_process = Path(f"/proc/{pid}")
        inodes = {str(fd.readlink()) for fd in (of_process / "fd").iterdir()}
        name = (of_process / "comm").read_text().strip()
        tables = [(of_process / "net" / table).read_text() for table in ("tcp", "tcp6")]
        rows = [row.split() for table in tables for row in table.splitlines()]
    except FileNotFoundError:  # it has ended
        return []
    return [(name, row[1].rpartition(":")[0]) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
