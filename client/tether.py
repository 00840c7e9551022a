"""`python tether.py <parent> <command>…`: becomes a command that ends when the process <parent> does, even by SIGKILL.

A program of its own because code between fork and exec is not safe in a process with threads, as every one that uses
gRPC is. Only Linux can tell a process to end with its parent; elsewhere the command runs untied.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            sys.exit(1)
    os.execv(command[0], command)
