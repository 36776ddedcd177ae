"""Keeps other processes from opening a file until a line comes from the standard input.

A lease (fcntl(2), F_SETLEASE) makes their open(2) wait, as it would wait for a silent file server.
Prints "held", and "asked" when another process begins to wait.
"""

import fcntl
import os
import signal
import sys

signal.signal(signal.SIGIO, lambda *_: os.write(1, b"asked\n"))
file = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.write(1, b"held\n")
sys.stdin.readline()
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
