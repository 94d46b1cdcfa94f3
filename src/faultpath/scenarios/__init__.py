"""The built-in scenarios. A scenario of one's own is written the same way, in a Python file that sets ``scenarios``."""

from __future__ import annotations

from faultpath.scenario import (
    OTHER,
    Scenario,
    access,
    close,
    cpu_access,
    dontneed,
    exit_process,
    fault,
    fork,
    map_file,
    map_memory,
    mremap,
    munmap,
    oom_reap,
    protect_read,
    reclaim,
    remap_twice,
    truncate,
)

MAPPED = [map_memory(0, 4)]
USED = [*MAPPED, access(1), access(2)]  # the device uses two of the four pages

SCENARIOS = [
    Scenario("fault-vs-munmap", "A fault against munmap of the whole mapping.", USED, [fault(1), munmap(0, 4)]),
    Scenario("fault-vs-munmap-left", "A fault against munmap of what is left of it.", USED, [fault(3), munmap(0, 2)]),
    Scenario("fault-vs-munmap-hole", "A fault right of a hole that munmap makes.", USED, [fault(3), munmap(1, 1)]),
    Scenario(
        "shrunk-interval",
        "A fault right of a hole that munmap makes, whose page is then dropped.",
        USED,
        [fault(3), munmap(1, 1), dontneed(3, 1)],
    ),
    Scenario("fault-vs-dontneed", "A fault against MADV_DONTNEED.", USED, [fault(1), dontneed(0, 4)]),
    Scenario("fault-vs-mprotect", "A write fault against mprotect to read-only.", USED, [fault(3), protect_read(0, 4)]),
    Scenario("fault-vs-mremap", "A fault against a move.", USED, [fault(1), mremap(0, 4, 8)], pages=12),
    Scenario("fault-vs-fork", "A write fault against fork's write protection.", USED, [fault(3), fork()]),
    Scenario(
        "fault-vs-cow",
        "A fault against the process's own break of copy-on-write.",
        [*USED, fork()],
        [fault(1, write=0), cpu_access(1)],
    ),
    Scenario(
        "device-cow",
        "Two devices' write faults that both break copy-on-write.",
        [*USED, fork()],
        [fault(1), fault(1, device=OTHER)],
        devices=2,
    ),
    Scenario("fault-vs-reclaim", "A fault against reclaim, which takes no mmap_lock.", USED, [fault(1), reclaim(1)]),
    Scenario(
        "fault-vs-truncate",
        "A fault against truncation of the file mapped, which takes no mmap_lock.",
        [map_file(0, 4), access(1), access(2)],
        [fault(1), truncate(0, 4)],
    ),
    Scenario(
        "two-faults-one-page",
        "Two faults on one page, which is dropped.",
        USED,
        [fault(3), fault(3), dontneed(3, 1)],
    ),
    Scenario(
        "two-faults-one-mapping",
        "Two faults in a mapping that goes.",
        MAPPED,
        [fault(1), fault(2), munmap(0, 4)],
    ),
    Scenario(
        "two-first-faults",
        "Two first faults in one mapping, while an unrelated invalidation runs.",
        [*MAPPED, map_memory(5, 2), access(5)],
        [fault(1), fault(2), dontneed(5, 1)],
        pages=8,
    ),
    Scenario(
        "background",
        "munmap, mmap and munmap again, all during a long unrelated invalidation.",
        [*USED, map_memory(5, 2), access(5)],
        [fault(1), remap_twice(0, 4), dontneed(5, 1)],
        pages=8,
    ),
    Scenario("teardown-vs-fault", "The device file is closed during a fault.", USED, [fault(3), close()]),
    Scenario("teardown-vs-munmap", "The device file is closed during munmap.", USED, [close(), munmap(0, 4)]),
    Scenario(
        "teardown-vs-both",
        "The device file is closed during a fault and munmap.",
        USED,
        [close(), fault(3), munmap(1, 1)],
    ),
    Scenario("exit-vs-fault", "The process exits during a fault.", USED, [fault(3), exit_process()]),
    Scenario("exit-vs-teardown", "The process exits while the device file is closed.", USED, [close(), exit_process()]),
    Scenario("oom-vs-fault", "The OOM reaper, which must not block, during a fault.", USED, [fault(3), oom_reap()]),
    Scenario(
        "oom-vs-munmap",
        "The OOM reaper while munmap's callback holds the driver's lock.",
        USED,
        [munmap(0, 2), oom_reap()],
    ),
    Scenario(
        "two-clients",
        "Two device files on one mm: one faults, the other has faulted, and the mapping goes.",
        [*USED, access(3, device=OTHER)],
        [fault(1, device=OTHER), munmap(0, 4)],
        devices=2,
    ),
    Scenario(
        "two-clients-hole",
        "Two device files on one mm: both fault in a mapping that gets a hole.",
        USED,
        [fault(3), fault(0, device=OTHER), munmap(1, 1)],
        devices=2,
    ),
    Scenario(
        "failed-allocation",
        "munmap of a hole whose callback gets no memory, and a fault right of it.",
        [*USED, access(3)],
        [fault(3), munmap(1, 1)],
        failures=1,
    ),
]
