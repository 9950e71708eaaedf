#!/usr/bin/env python3
"""Cuts the power of a file system.

    shutdown.py MOUNT_POINT

EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one ioctl. Without a flush of the log, nothing that lies
in a cache reaches the disk any more.
"""

import fcntl
import os
import struct
import sys

GOING_DOWN = 0x8004587D  # _IOR('X', 125, __u32)
WITHOUT_LOG_FLUSH = 2

mount_point = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(mount_point, GOING_DOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
