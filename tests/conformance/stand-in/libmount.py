"""The two things crun's test_mounts.py asks of util-linux's python module, which Debian 12 does not package."""

import re


class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)); the options that libmount keeps apart are apart there too."""

    def __init__(self, line):
        fields = line.split()
        last = fields.index("-")
        self.target = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        self.vfs_options = fields[5]
        self.fs_options = fields[last + 3] if len(fields) > last + 3 else ""


class Table:
    """A mountinfo file. Lines of another form, such as a warning of the runtime, are not mounts."""

    def __init__(self, path):
        with open(path) as file:
            self.mounts = [Mount(line) for line in file if " - " in line]

    def find_target(self, target):
        """The topmost mount at a place."""
        return next((mount for mount in reversed(self.mounts) if mount.target == target), None)
