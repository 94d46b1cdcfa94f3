"""From the bundled recordings to rows: the sequence one program makes, and what each row says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faultpath.errors import FaultpathError
from faultpath.trace.formats import recognise
from faultpath.trace.importing import import_recording
from faultpath.trace.info import trace_info
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers import rows as rw
from faultpath.trace.readers.syscalls import K_ENTER, K_EXIT, K_FAULT, K_TAP, SYSCALLS
from faultpath.trace.schema import COLUMNS, Columns, open_trace

DATA = Path(__file__).parent / "readers" / "data"
PAGE = 4096


def import_bundled(tmp_path: Path, name: str = "file", extra: Columns | None = None) -> Columns:
    import_recording(DATA / f"{name}.perf.data", tmp_path / "t.trace", extra_rows=extra)
    pieces = list(open_trace(tmp_path / "t.trace").batches())
    return {n: np.concatenate([p[n] for p in pieces]) for n in COLUMNS}


def test_the_bundled_program_gives_its_operations_in_order(tmp_path: Path) -> None:
    """data/work.c, after its start: what it does is what the rows say."""
    c = import_bundled(tmp_path)
    pid = int(c["pid"][0])
    first = int(np.argmax(c["op"] == Op.MMAP))
    p = int(c["addr"][first])
    story = [
        (Op(o).name, int(a), int(n), int(g))
        for i, o, a, n, g in zip(c["pid"], c["op"], c["addr"], c["len"], c["arg"], strict=True)
        if o not in (Op.FAULT, Op.BRK) and i == pid
    ][list(c["op"][~np.isin(c["op"], [Op.FAULT, Op.BRK])]).index(Op.MMAP) :]
    names = [f"{Event(g).name} {n // PAGE}" if o == "INVALIDATE" else o for o, _, n, g in story]
    forked = names.index("FORK")
    assert names[:7] == ["MMAP", "PROTECTION_VMA 2", "MPROTECT", "PROTECTION_VMA 2", "MPROTECT", "CLEAR 4", "MADVISE"]
    assert {name.split()[0] for name in names[7:forked]} == {"PROTECTION_PAGE"}
    rest = [name for name in names[forked + 1 :] if name != "CLEAR 1"]  # copy-on-write breaks come when they come
    assert rest == [
        "FORK",
        *["UNMAP 16", "UNMAP 16", "MREMAP"],
        *["UNMAP 8", "MUNMAP"],
        *["MMAP", "MADVISE"],
        *["CLEAR 512", "PROTECTION_VMA 1", "MPROTECT"],  # the huge page is split first
        *["UNMAP 512", "MUNMAP"],
        *["FORK", "EXIT"],
    ]
    assert story[0][1:3] == (p, 16 * PAGE)
    assert sum(int(o) == Op.EXIT for o in c["op"]) == 4


def test_a_child_in_the_parents_address_space_gives_the_parents_rows(tmp_path: Path) -> None:
    c = import_bundled(tmp_path)
    pid = int(c["pid"][0])
    children = c["arg"][c["op"] == Op.FORK].tolist()
    flags = c["aux"][c["op"] == Op.FORK].tolist()
    assert [f & rw.CLONE_VM for f in flags] == [0, rw.CLONE_VM, rw.CLONE_VM]
    faults = c["op"] == Op.FAULT
    assert set(c["pid"][faults & (c["tid"] == children[0])]) == {children[0]}
    assert set(c["pid"][faults & (c["tid"] == children[1])]) == {pid}


def test_failed_calls_are_counted(tmp_path: Path) -> None:
    import_bundled(tmp_path)
    assert open_trace(tmp_path / "t.trace").meta.dropped == {"failed execve": 1, "failed madvise": 1}


def test_without_the_tap_invalidations_come_from_the_model(tmp_path: Path) -> None:
    data = (DATA / "file.perf.data").read_bytes().replace(b"name: kvm_unmap_hva_range", b"name: kvm_unmap_hva_xxxxx")
    (tmp_path / "in").write_bytes(data)
    meta = import_recording(tmp_path / "in", tmp_path / "t.trace")
    assert meta.invalidations_from == "model"
    assert any("kvm:kvm_unmap_hva_range was not recorded" in said for said in meta.missing)


def test_importing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    import_bundled(tmp_path)
    first = (tmp_path / "t.trace").read_bytes()
    import_bundled(tmp_path)
    assert (tmp_path / "t.trace").read_bytes() == first


def test_snapshots_replace_perfs_records_of_mappings(tmp_path: Path) -> None:
    plain = import_bundled(tmp_path)
    vmas = plain["op"] == Op.VMA
    pid = int(plain["pid"][0])
    assert vmas.sum() == 2
    when = int(plain["time"][vmas][-1])
    extra = {n: np.zeros(1, t) for n, t in COLUMNS.items()}
    for name, value in {
        "time": when,
        "pid": pid,
        "tid": pid,
        "op": Op.VMA,
        "addr": PAGE,
        "len": PAGE,
        "arg": 3,
        "aux": 2,
    }.items():
        extra[name][0] = value
    c = import_bundled(tmp_path, extra=extra)
    vmas = c["op"] == Op.VMA
    assert {n: c[n][vmas].tolist() for n in ("time", "pid", "addr", "len", "arg", "aux")} == {
        "time": [when], "pid": [pid], "addr": [PAGE], "len": [PAGE], "arg": [3], "aux": [2],
    }  # fmt: skip
    assert len(c["op"]) == len(plain["op"]) - 1


def test_info_counts_what_is_there(tmp_path: Path) -> None:
    c = import_bundled(tmp_path)
    info = trace_info(tmp_path / "t.trace")
    assert info["rows"] == len(c["op"]) == sum(info["ops"].values()) == sum(p["rows"] for p in info["processes"])
    assert info["invalidations"]["protection_page"] > 3
    assert info["duration_ns"] == int(c["time"][-1] - c["time"][0])
    assert {p["comm"] for p in info["processes"]} == {"work"}
    assert info["kernel"] == "6.18.44"


def test_a_trace_is_recognised_and_not_imported_again(tmp_path: Path) -> None:
    import_bundled(tmp_path)
    assert recognise(tmp_path / "t.trace") == "trace"
    assert recognise(DATA / "pipe.perf.data") == "perf.data"
    with pytest.raises(FaultpathError, match="already a trace"):
        import_recording(tmp_path / "t.trace", tmp_path / "u.trace")


# Rules of rows.py one by one, on events made by hand: (time, tid, kind, fields...), pid 10 unless given.

NAMES = [call.name for call in SYSCALLS]


class Story:
    """Builds events and turns them into rows."""

    def __init__(self) -> None:
        self.events: list[list[int]] = []

    def add(self, event: int, *fields: int, pid: int = 10, tid: int | None = None, time: int | None = None) -> Story:
        now = len(self.events) + 1 if time is None else time
        self.events.append([now, pid, pid if tid is None else tid, 0, event, *fields, *[0] * (5 - len(fields))])
        return self

    def enter(self, name: str, *args: int, **who: int) -> Story:
        return self.add(K_ENTER + NAMES.index(name), *args, **who)

    def leave(self, name: str, ret: int, **who: int) -> Story:
        return self.add(K_EXIT + NAMES.index(name), ret, **who)

    def rows(self) -> list[tuple[str, int, int, int, int, int]]:
        self.maker = rw.RowMaker(np.arange(64), PAGE, set(), "made")
        c = self.maker.rows(np.array(self.events, np.int64))
        order = ("pid", "addr", "len", "arg", "aux")
        return [(Op(o).name, *(int(c[n][i]) for n in order)) for i, o in enumerate(c["op"])]


@pytest.mark.parametrize(
    ("call", "args", "event", "op"),
    [
        ("munmap", (0, 8 << 20), Event.UNMAP, Op.MUNMAP),
        ("mmap", (0, 8 << 20, 3, 0x32), Event.UNMAP, Op.MMAP),
        ("mremap", (0, 8 << 20, PAGE, 1), Event.UNMAP, Op.MREMAP),
        ("brk", (0,), Event.UNMAP, Op.BRK),
        ("mprotect", (0, 8 << 20, 1), Event.PROTECTION_VMA, Op.MPROTECT),
        ("pkey_mprotect", (0, 8 << 20, 1), Event.PROTECTION_VMA, Op.MPROTECT),
        ("madvise", (0, 8 << 20, 4), Event.CLEAR, Op.MADVISE),
        ("mbind", (0, 8 << 20, 2), Event.CLEAR, Op.MBIND),
        ("clone", (17,), Event.PROTECTION_PAGE, Op.FORK),
        ("clone3", (), Event.PROTECTION_PAGE, Op.FORK),
        ("fork", (), Event.PROTECTION_PAGE, Op.FORK),
        ("vfork", (), Event.PROTECTION_PAGE, Op.FORK),
        ("execve", (), Event.UNMAP, Op.EXEC),
    ],
)
def test_invalidations_take_their_type_from_the_call_they_are_in(call: str, args: tuple, event: Event, op: Op) -> None:
    story = Story().enter(call, *args).add(K_TAP, 2 << 20, 4 << 20).add(K_TAP, PAGE, 2 * PAGE, tid=11)
    assert story.rows() == [
        ("INVALIDATE", 10, 2 << 20, 2 << 20, event, op),
        ("INVALIDATE", 10, PAGE, PAGE, Event.CLEAR, Op.FAULT),  # another thread, in no call
    ]


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("munmap", ((2 << 20) + PAGE, PAGE)),
        ("mmap", ((2 << 20) + PAGE, PAGE, 3, 0x32)),
        ("mmap", (0, 8 << 20, 3, 0x22)),  # no MAP_FIXED: nothing was asked to go
        ("mprotect", ((2 << 20) + PAGE, 8 << 20, 1)),
        ("mremap", ((2 << 20) + PAGE, PAGE, PAGE, 1)),
        ("brk", ((2 << 20) + PAGE,)),
    ],
)
def test_a_huge_block_that_sticks_out_is_the_split_before_the_change(call: str, args: tuple) -> None:
    story = Story().enter(call, *args).add(K_TAP, 2 << 20, 4 << 20).add(K_TAP, 2 << 20, (4 << 20) + PAGE)
    assert [row[4] for row in story.rows()] == [Event.CLEAR, SYSCALLS[NAMES.index(call)].event]


def test_an_mremap_to_a_fixed_place_asked_for_both_ranges() -> None:
    story = Story().enter("mremap", 0, PAGE, 2 << 20, 3, 2 << 20).add(K_TAP, 2 << 20, 4 << 20)
    assert [row[4] for row in story.rows()] == [Event.UNMAP]


def test_lengths_are_rounded_up_and_hugetlb_to_its_page() -> None:
    story = (
        Story()
        .enter("mmap", 0, 5, 3, 0x22)
        .leave("mmap", 1 << 30)
        .enter("mmap", 0, 5, 3, 0x40022)
        .leave("mmap", 1 << 30)
    )
    story.enter("mmap", 0, 5, 3, 30 << 26 | 0x40022).leave("mmap", 1 << 30)
    story.enter("munmap", 1 << 30, 4097).leave("munmap", 0)
    assert [row[3] for row in story.rows()] == [PAGE, 2 << 20, 1 << 30, 2 * PAGE]


def test_unpaired_and_failed_calls_give_no_row_and_are_counted() -> None:
    story = (
        Story().leave("mmap", PAGE).enter("munmap", PAGE, PAGE).enter("mprotect", PAGE, PAGE, 1).leave("mprotect", -12)
    )
    story.enter("madvise", PAGE, 0, 4).leave("madvise", 0)
    assert story.rows() == []
    assert story.maker.dropped == {
        "failed mprotect": 1,
        "munmap entered, exit not seen": 1,
        "mmap left, entry not seen": 1,
        "madvise of nothing": 1,
    }


def test_a_lost_exit_does_not_colour_what_follows() -> None:
    """A thread that faults in user mode has left its call."""
    story = Story().enter("munmap", PAGE, PAGE).add(K_FAULT, 7, 4).add(K_TAP, PAGE, 2 * PAGE)
    assert [row[4:] for row in story.rows()] == [(4, 0), (Event.CLEAR, Op.FAULT)]
    assert story.maker.dropped == {"munmap entered, exit not seen": 1}


def test_addresses_above_user_space() -> None:
    story = Story().add(K_FAULT, -10 << 20, 4).add(K_TAP, PAGE, -1).add(K_TAP, PAGE, PAGE)
    assert story.rows() == [("INVALIDATE", 10, PAGE, (1 << 56) - PAGE, Event.CLEAR, Op.FAULT)]
    assert story.maker.dropped == {"at a kernel address": 1, "invalidation of nothing": 1}
    for bad in (1 << 56, 1 << 62, -1 << 62):
        with pytest.raises(FaultpathError, match="not canonical"):
            Story().add(K_FAULT, bad, 4).rows()
    for args in (
        (PAGE, 1 << 57),
        (1 << 57, PAGE),
        ((1 << 56) - PAGE, 2 * PAGE),
        (-PAGE, PAGE),
        (PAGE, -PAGE),
        (5, PAGE),
    ):
        with pytest.raises(FaultpathError, match="not in user space"):
            Story().enter("munmap", *args).leave("munmap", 0).rows()


FORKED, EXITED, NAMED, MAPPED = -pc.FORK, -pc.EXIT, -pc.COMM, -pc.MMAP2


def test_a_process_ends_with_its_last_thread() -> None:
    story = Story().add(NAMED, 1).add(FORKED, 10, 10, tid=11).add(FORKED, 10, 10, tid=12)
    story.add(EXITED, 10, 10, tid=11).add(EXITED, 10, 10).add(K_FAULT, 7, 4, tid=12).add(EXITED, 10, 10, tid=12)
    assert [row[0] for row in story.rows()] == ["EXEC", "FAULT", "EXIT"]


def test_exec_by_a_thread_that_does_not_lead() -> None:
    """de_thread, fs/exec.c: the others die, the leader too; the caller takes its number without an exit of its own."""
    story = Story().add(NAMED, 1).add(FORKED, 10, 10, tid=11).enter("execve", tid=11)
    story.add(EXITED, 10, 10, tid=10).add(NAMED, 1).leave("execve", 0).add(K_FAULT, 7, 4).add(EXITED, 1, 1)
    assert [row[0] for row in story.rows()] == ["EXEC", "EXEC", "FAULT", "EXIT"]
    assert story.maker.dropped == {}


def test_exec_without_perfs_record_of_it() -> None:
    story = Story().enter("execve").leave("execve", 0)
    assert [row[0] for row in story.rows()] == ["EXEC"]


def test_a_vfork_child_is_the_parents_until_it_execs() -> None:
    story = Story().enter("vfork").add(FORKED, 10, 10, pid=20).leave("vfork", 0, pid=20).add(K_FAULT, 7, 6, pid=20)
    story.add(K_TAP, PAGE, 2 * PAGE, pid=20).add(NAMED, 1, pid=20).add(K_FAULT, 8, 6, pid=20).leave("vfork", 20)
    assert [(row[0], row[1]) for row in story.rows()] == [
        ("FORK", 10),
        ("FAULT", 10),
        ("INVALIDATE", 10),
        ("EXEC", 20),
        ("FAULT", 20),
    ]


def test_fork_without_perfs_record_of_it() -> None:
    story = (
        Story()
        .enter("fork")
        .leave("fork", 20)
        .enter("clone", 0x50F00)
        .leave("clone", 21)
        .enter("clone3")
        .leave("clone3", 22)
    )
    assert story.rows() == [("FORK", 10, 0, 0, 20, 17)]


def test_mappings_made_by_calls_are_not_found_again() -> None:
    story = Story().add(MAPPED, PAGE, PAGE, 5, 2).enter("mmap", 0, PAGE, 5, 2).add(MAPPED, 2 * PAGE, PAGE, 5, 2)
    story.leave("mmap", 2 * PAGE).enter("execve").add(NAMED, 1).add(MAPPED, 3 * PAGE, 5, 5, 2).leave("execve", 0)
    assert [row[:4] for row in story.rows()] == [
        ("VMA", 10, PAGE, PAGE),
        ("MMAP", 10, 2 * PAGE, PAGE),
        ("EXEC", 10, 0, 0),
        ("VMA", 10, 3 * PAGE, PAGE),
    ]


def test_what_was_there_before_is_stamped_with_the_first_event() -> None:
    story = Story().add(MAPPED, PAGE, PAGE, 5, 2, time=0).add(K_FAULT, 7, 4, time=900)
    maker = rw.RowMaker(np.arange(64), PAGE, set(), "made")
    assert maker.rows(np.array(story.events, np.int64))["time"].tolist() == [900, 900]


def test_many_tasks_grow_the_tables() -> None:
    story = Story()
    for pid in range(1, 2000):
        story.add(K_FAULT, pid, 4, pid=pid)
    assert [row[1] for row in story.rows()] == list(range(1, 2000))


def test_a_number_used_again_is_a_new_task() -> None:
    story = (
        Story()
        .enter("munmap", PAGE, PAGE, pid=20, tid=21)
        .add(K_FAULT, 1, 4, pid=30, tid=21)
        .leave("munmap", 0, pid=30, tid=21)
    )
    assert [row[0] for row in story.rows()] == ["FAULT"]
    assert story.maker.dropped == {"munmap left, entry not seen": 1}


def test_half_of_a_call_is_not_used(tmp_path: Path) -> None:
    """Only the entries of mprotect were recorded: the invalidations after the first are not said to be inside it."""
    data = (DATA / "file.perf.data").read_bytes().replace(b"name: sys_exit_mprotect", b"name: sys_exit_mprotecx")
    (tmp_path / "in").write_bytes(data)
    meta = import_recording(tmp_path / "in", tmp_path / "t.trace")
    ops = trace_info(tmp_path / "t.trace")["ops"]
    assert "mprotect" not in ops
    assert ops["munmap"] == 2
    assert any("mprotect" in said and "not recorded" in said for said in meta.missing)
    assert meta.dropped == {"failed execve": 1, "failed madvise": 1}


def test_interpreted_it_is_the_same(tmp_path: Path) -> None:
    """numpy checks every index: nothing is read outside an array, which compiled code would not notice."""
    import_bundled(tmp_path)
    command = (
        "import sys, pathlib, faultpath.trace.importing as i; i.import_recording(*map(pathlib.Path, sys.argv[1:]))"
    )
    for name in ("file", "z", "pipe", "pipez"):
        import_bundled(tmp_path, name)
        arguments = [sys.executable, "-c", command, DATA / f"{name}.perf.data", tmp_path / "plain.trace"]
        subprocess.run(arguments, env={**os.environ, "FAULTPATH_NO_JIT": "1"}, check=True)
        assert (tmp_path / "plain.trace").read_bytes() == (tmp_path / "t.trace").read_bytes()


def test_the_recording_is_never_overwritten(tmp_path: Path) -> None:
    recording = tmp_path / "x.trace"
    recording.write_bytes((DATA / "z.perf.data").read_bytes())
    with pytest.raises(FaultpathError, match="would overwrite"):
        import_recording(recording, recording)
    assert recording.read_bytes() == (DATA / "z.perf.data").read_bytes()
