#!/usr/bin/env python3
"""Runs a command where io_uring is refused, as container runtimes refuse it.

    without_io_uring.py EPERM|ENOSYS COMMAND [ARGUMENT...]

A seccomp filter answers the three system calls of io_uring with that error, here and in every
process started from here.
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_WORD, JUMP_IF_AT_LEAST, JUMP_IF_GREATER, RETURN = 0x20, 0x35, 0x25, 0x06
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
# io_uring_setup, io_uring_enter, io_uring_register: the same on all architectures.
FIRST, LAST = 425, 427

refusal = RET_ERRNO | getattr(errno, sys.argv[1])
filter_lines = [
    # code, jump if true, jump if false, operand (struct sock_filter)
    (LOAD_WORD, 0, 0, 0),  # the number of the system call
    (JUMP_IF_AT_LEAST, 0, 2, FIRST),
    (JUMP_IF_GREATER, 1, 0, LAST),
    (RETURN, 0, 0, refusal),
    (RETURN, 0, 0, RET_ALLOW),
]
lines = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *it) for it in filter_lines))
program = ctypes.create_string_buffer(
    struct.pack("@HP", len(filter_lines), ctypes.addressof(lines))
)
prctl = ctypes.CDLL(None, use_errno=True).prctl
for arguments in [(PR_SET_NO_NEW_PRIVS, 1), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)]:
    padded = [*arguments, 0, 0, 0][:5]
    if prctl(*(it if it is program else ctypes.c_ulong(it) for it in padded)) != 0:
        sys.exit(f"prctl{arguments}: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
