#!/usr/bin/env python3
"""Runs a command whose io_uring calls are refused, as container runtimes do.

usage: without_io_uring.py EPERM|ENOSYS COMMAND...
"""
import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
# io_uring_setup, io_uring_enter, io_uring_register: the same numbers on every architecture.
FIRST, LAST = 425, 427


def bpf(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)


refusal = RET_ERRNO | getattr(errno, sys.argv[1])
program = b"".join([
    bpf(0x20, 0, 0, 0),          # load the number of the system call
    bpf(0x35, 0, 2, FIRST),      # below: allow
    bpf(0x25, 1, 0, LAST),       # above: allow
    bpf(0x06, 0, 0, refusal),
    bpf(0x06, 0, 0, RET_ALLOW),
])
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(program)
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 5, ctypes.addressof(buffer)))
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0
):
    sys.exit("cannot install the seccomp filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
