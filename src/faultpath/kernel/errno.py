"""Error numbers, include/uapi/asm-generic/errno-base.h."""

EPERM = 1
ENOENT = 2
EAGAIN = 11
ENOMEM = 12
EFAULT = 14
EBUSY = 16
EINVAL = 22
EACCES = 13
