"""Constructed logs of amdkfd's SMI events: no recording, for want of a GPU, but lines as the kernel prints them.

Formats, numbers and the order in which events follow each other are those of kfd_smi_events.c, kfd_svm.c and
kfd_migrate.c, Linux 6.1; MIGRATE_END with an error code and DROPPED_EVENT are of Linux 6.18. Addresses are pages.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

PID, GPU, OTHER_GPU = 4242, 0x6E2F, 0xB5A9
HEAP = 0x7F4A00000

#: A GPU faults on a range in system memory, which moves; the processor takes it back; the memory is unmapped.
STORY = f"""\
7 1000 -{PID} @{HEAP + 5:x}({GPU:x}) W
5 1100 -{PID} @{HEAP:x}(200) 0->{GPU:x} 0:0 1
b 1200 -{PID} @{HEAP:x}(200) {GPU:x} 1
6 1300 -{PID} @{HEAP:x}(200) 0->{GPU:x} 1 0
8 1400 -{PID} @{HEAP + 5:x}({GPU:x}) M
7 2000 -{PID} @{HEAP + 0x207:x}({GPU:x}) R
8 2100 -{PID} @{HEAP + 0x207:x}({GPU:x}) U
5 3000 -{PID} @{HEAP:x}(200) {GPU:x}->0 0:0 2
b 3100 -{PID} @{HEAP:x}(200) {GPU:x} 1
6 3200 -{PID} @{HEAP:x}(200) {GPU:x}->0 2
b 4000 -{PID} @{HEAP + 0x200:x}(10) {GPU:x} 0
9 4100 -{PID} {GPU:x} 0
a 4200 -{PID} {GPU:x}
b 5000 -{PID} @{HEAP:x}(400) {GPU:x} 2
1 {PID:x}:saxpy
c 6000 -{PID} 17
"""


def storm(lines: int, seed: int = 1) -> Iterator[str]:
    """At least so many lines: faults with and without a migration, migrations back, other invalidations."""
    draw = random.Random(seed)
    time = 10**12
    while lines > 0:
        time += draw.randrange(2000, 9000)
        block = HEAP + 512 * draw.randrange(256)
        range_ = f"-{PID} @{block:x}(200)"
        dice = draw.random()
        if dice < 0.5:
            fault, moves = f"-{PID} @{block + draw.randrange(512):x}({GPU:x})", draw.random() < 0.6
            event = [f"7 {time} {fault} {draw.choice('RW')}"]
            if moves:
                event.append(f"5 {time + 300} {range_} 0->{GPU:x} 0:0 1")
                event.append(f"b {time + 500} {range_} {GPU:x} 1")
                event.append(f"6 {time + 900} {range_} 0->{GPU:x} 1")
            event.append(f"8 {time + 1500} {fault} {'M' if moves else 'U'}")
        elif dice < 0.8:
            event = [f"5 {time} {range_} {GPU:x}->0 0:0 2", f"b {time + 200} {range_} {GPU:x} 1"]
            event.append(f"6 {time + 900} {range_} {GPU:x}->0 2")
        else:
            start, size = block + draw.randrange(400), draw.randrange(1, 100)
            event = [f"b {time} -{PID} @{start:x}({size:x}) {GPU:x} {draw.choice('02')}"]
        yield "".join(f"{line}\n" for line in event)
        lines -= len(event)


if __name__ == "__main__":
    sys.stdout.writelines(storm(int(sys.argv[1])) if len(sys.argv) > 1 else [STORY])
