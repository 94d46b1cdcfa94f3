"""Every case: what the checker says of each variant, in how many states, and that it is the race of its story."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faultpath import cases
from faultpath.cases import CASES, run
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, PROPOSED
from faultpath.engine import arena, native
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.engine.trail import trail
from faultpath.errors import FaultpathError
from faultpath.report import cases as report
from oracles.explorer import Explorer

GOLDEN = Path(__file__).parent.parent / "golden" / "cases.txt"

# Of each variant: its states, and what the counterexample must show in this order: a thread, a function of it, and a
# part of the step's text.
Story = list[tuple[str, str, str]]
EXPECTED: dict[str, dict[str, tuple[int, Story]]] = {
    "amdgpu-get-pages": {
        BUGGY: (
            413,
            [
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 1"),
                ("fault", "amdgpu_hmm_range_get_pages", "pt_set(hmm_range.hmm_pfns, 0x10000"),
                ("kswapd", "mm_reclaim", "pt_unmap_frame(mm.pt, 0x10000"),
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 3"),
                ("fault", "mmu_interval_read_retry", "invalidate_seq -> 3"),
                ("fault", "map_if_valid", "pt_set(mirror.pt, 0x10000"),
            ],
        ),
        FIRST_FIX: (
            364,
            [
                ("fault", "restore_userptr_worker", "down_read(mm.mmap_lock)"),
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 1"),
                ("kswapd", "mmu_interval_set_seq", "invalidate_seq = 3"),
                ("fault", "hmm_range_fault", "invalidate_seq -> 3"),
                ("fault", "read_once", "timed_out() -> 0"),
            ],
        ),
        FINAL_FIX: (345, []),
    },
    "interval-remove": {
        BUGGY: (
            81,
            [
                ("close", "mmu_interval_notifier_remove", "hlist_add_head(mirror.notifier.deferred_item"),
                ("kswapd", "mn_itree_inv_end", "invalidate_seq = 4"),
                ("close", "look_without_the_lock", "invalidate_seq -> 4"),
                ("close", "mirror_close", "kfree(mirror)"),
                ("kswapd", "mn_itree_inv_end", "hlist_next(mirror.notifier.deferred_item)"),
            ],
        ),
        FINAL_FIX: (93, []),
    },
    "hmm-struct": {
        BUGGY: (
            67,
            [
                ("kswapd", "mn_hlist_invalidate_range_start", "srcu_read_lock"),
                ("close", "mmu_notifier_unregister_no_release", "hlist_del_init_rcu(hmm.hlist)"),
                ("close", "free_now", "kfree(hmm)"),
                ("kswapd", "mn_hlist_invalidate_range_start", "hmm.ops"),
            ],
        ),
        FINAL_FIX: (509, []),
    },
    "device-private": {
        BUGGY: (
            22,
            [
                ("write", "handle_mm_fault", "pt_get(mm.pt, 0x10000)"),
                ("evict", "migrate_back", "pt_cmpxchg(mm.pt, 0x10000"),
                ("evict", "put_page", "kfree(page)"),
                ("write", "migrate_to_ram", "page.zone_device_data"),
            ],
        ),
        FINAL_FIX: (51, []),
    },
    "hmm-livelock": {
        BUGGY: (
            410,
            [
                ("fault", "fault_on_cpu", "folio.busy = 1"),
                ("migrate", "migrate_device_unmap", "mutex_lock(folio.lock)"),
                ("migrate", "migrate_device_unmap", "queue_work(folio.lru_add_drain_work"),
                ("fault", "do_swap_page", "mutex_trylock(folio.lock) -> 0"),
                ("fault", "hmm_range_fault", "invalidate_seq"),
            ],
        ),
        FINAL_FIX: (476, []),
    },
    "khugepaged-file": {
        BUGGY: (
            25,
            [
                ("fault", "mirror_fault", "pt_set(mirror.pt, 0x10000"),
                ("khugepaged", "collapse_and_free_pmd", "pt_clear(mm.pt, 0x10000"),
            ],
        ),
        FINAL_FIX: (129, []),
    },
    "secondary-tlb": {
        BUGGY: (
            35,
            [
                ("device", "device_write", "tlb_access(smmu.tlb, mm.pt, 0x10000) -> V frame 1"),
                ("write", "wp_page_reuse", "pt_cmpxchg(mm.pt, 0x10000, V frame 1, V W frame 1)"),
                ("device", "handle_mm_fault", "pt_get(mm.pt, 0x10000) -> V W frame 1"),
                ("device", "device_write", "tlb_access(smmu.tlb, mm.pt, 0x10000) -> V frame 1"),
            ],
        ),
        FINAL_FIX: (90, []),
    },
    "registration": {
        BUGGY: (
            137,
            [
                ("write", "notify_range_start", "hlist_first(subscriptions.list) -> NULL"),
                ("create", "__mmu_notifier_register", "hlist_add_head(kvm_file.mmu_notifier.hlist"),
                ("create", "create_and_fault", "pt_set(kvm_file.pt, 0x10000"),
            ],
        ),
        FINAL_FIX: (131, []),
    },
    "mlx5-dereg": {
        BUGGY: (
            27,
            [
                ("reclaim", "mlx5_ib_invalidate_range", "private -> mr"),
                ("close", "mlx5r_umr_revoke_mr", "kfree(mkey)"),
                ("reclaim", "mlx5r_umr_update_xlt", "mkey.updates"),
            ],
        ),
        FIRST_FIX: (
            3,
            [
                ("close", "revoke_under_umem_mutex", "mutex_lock(mr.umem_mutex)"),
                ("close", "cache_ent_find_and_store", "mutex_lock(mdev.rb_lock)"),
            ],
        ),
        FINAL_FIX: (127, []),
    },
    "mlx5-implicit-child": {
        BUGGY: (
            28,
            [
                ("close", "free_implicit_child_mr", "kfree(mr)"),
                ("kswapd", "mlx5_ib_invalidate_range", "device_zap(mr.mtt"),
            ],
        ),
        FINAL_FIX: (165, []),
    },
    "xe-userptr": {
        BUGGY: (
            325,
            [
                ("fault", "hmm_vma_handle_pte", "pt_get(mm.pt, 0x10000) -> V W frame 1"),
                ("kcompactd", "migrate_folio", "pt_clear(mm.pt, 0x10000"),
                ("kcompactd", "migrate_folio", "kfree(folio)"),
                ("fault", "set_page_dirty_lock", "folio"),
            ],
        ),
        FIRST_FIX: (
            42,
            [
                ("fault", "xe_vma_userptr_pin_pages", "mutex_lock(userptr.notifier_lock)"),
                ("fault", "set_page_dirty_lock", "mutex_lock(folio.lock)"),
            ],
        ),
        FINAL_FIX: (255, []),
    },
    "xe-iommu": {
        BUGGY: (
            107,
            [
                ("fault", "mirror_fault", "pt_set(mirror.pt, 0x10000"),
                ("kswapd", "mmu_interval_set_seq", "invalidate_seq = 3"),
            ],
        ),
        FINAL_FIX: (195, []),
    },
    "xe-repin": {
        BUGGY: (
            284,
            [
                ("kswapd", "vma_userptr_invalidate", "hlist_add_head(uptr.invalidate_link"),
                ("exec", "xe_vm_userptr_pin", "hlist_add_head(uptr.repin_link"),
                ("exec", "xe_vma_userptr_pin_pages", "timed_out() -> 1"),
                ("exec", "xe_vma_destroy", "kfree(uptr)"),
                ("exec", "xe_vma_userptr_pin_pages", "uptr.vm"),
            ],
        ),
        FINAL_FIX: (257, []),
    },
    "amdkfd-mmput": {
        BUGGY: (
            26,
            [
                ("kcompactd", "compact_page", "down_read(mm.i_mmap)"),
                ("kcompactd", "mmget_not_zero", "refcount_inc_not_zero(mm.mm_users) -> 1"),
                ("exit", "mmput", "refcount_dec_and_test(mm.mm_users) -> 0"),
                ("kcompactd", "mmput", "refcount_dec_and_test(mm.mm_users) -> 1"),
                ("kcompactd", "unlink_vmas", "down_write(mm.i_mmap)"),
            ],
        ),
        FINAL_FIX: (27, []),
    },
    "amdkfd-vma-removed": {
        BUGGY: (
            28,
            [
                ("munmap", "drop_vma", "itree_remove(mm.vmas, vma)"),
                ("munmap", "do_vmi_align_munmap", "downgrade_write(mm.mmap_lock)"),
                ("fault", "hmm_walk", "-> NULL"),
                ("fault", "svm_range_restore_pages", "svms.fatal = 1"),
            ],
        ),
        FINAL_FIX: (46, []),
    },
    "nouveau-drain": {
        BUGGY: (
            73,
            [
                ("kworker", "nouveau_svm_fault", "svm.ivmm -> svmm"),
                ("kworker", "nouveau_svm_fault", "mutex_unlock(svm.mutex)"),
                ("close", "nouveau_svmm_fini", "kfree(svmm)"),
                ("kworker", "nouveau_range_fault", "svmm.mm"),
            ],
        ),
        FINAL_FIX: (182, []),
    },
    "kvm-vma": {
        BUGGY: (
            121,
            [
                ("fault", "user_mem_abort", "vma.last -> 0x11fff"),
                ("mmap", "drop_vma", "itree_remove(mm.vmas, vma)"),
                ("mmap", "kvm_mmu_notifier_invalidate_range_end", "mmu_invalidate_seq = 1"),
                ("fault", "seq_after_mmap_lock", "mmu_invalidate_seq -> 1"),
                ("fault", "user_mem_abort", "pt_set(kvm.pt, 0x11000"),
            ],
        ),
        FINAL_FIX: (100, []),
    },
    "kvm-root": {
        BUGGY: (
            81,
            [
                ("memslot", "kvm_set_memslot", "root.invalid = 1"),
                ("memslot", "kvm_set_memslot", "root.child -> NULL"),
                ("vcpu", "direct_page_fault", "root.child = sp"),
                ("vcpu", "kvm_destroy_vm", "kfree(kvm_x86)"),
            ],
        ),
        FIRST_FIX: (
            155,
            [
                ("memslot", "kvm_set_memslot", "kvm_x86.updated = 1"),
                ("vcpu", "stale_by_root_and_int", "invalid -> 0"),
                ("vcpu", "mmu_invalidate_retry", "mmu_invalidate_seq -> 0x80000000"),
            ],
        ),
        FINAL_FIX: (185, []),
    },
    "hfi1-expected": {
        BUGGY: (4, [("munmap", "tid_rb_invalidate", "fd.invalid_tids = 1")]),
        FIRST_FIX: (
            36,
            [
                ("fault", "hmm_vma_handle_pte", "pt_get(mm.pt, 0x10000) -> V W frame 1"),
                ("munmap", "mn_itree_inv_start_range", "-> NULL"),
                ("fault", "mmu_interval_notifier_insert", "itree_insert(subscriptions.itree, tid_node)"),
                ("fault", "hfi1_user_exp_rcv_setup", "fd.given = 1"),
            ],
        ),
        FINAL_FIX: (
            468,
            [
                ("munmap", "mn_itree_inv_start_range", "-> tid_user_buf"),
                ("fault", "mmu_interval_notifier_insert", "hlist_add_head(tid_node.deferred_item"),
                ("fault", "mmu_interval_read_retry", "tid_user_buf.invalidate_seq -> 1"),
                ("munmap", "mmu_interval_set_seq", "tid_user_buf.invalidate_seq = 3"),
                ("fault", "setup_under_cover", "fd.given = 1"),
            ],
        ),
        PROPOSED: (464, []),
    },
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return run.check_cases()


@pytest.fixture(scope="module")
def results(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(case["name"], v["variant"]): v for case in document["cases"] for v in case["variants"]}


def test_each_case_is_known_here() -> None:
    assert list(EXPECTED) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_whole(name: str) -> None:
    case = cases.load(name)
    names = [variant.name for variant in case.variants]
    assert case.name == name
    assert names in ([BUGGY, FINAL_FIX], [BUGGY, FIRST_FIX, FINAL_FIX], [BUGGY, FIRST_FIX, FINAL_FIX, PROPOSED])
    assert list(EXPECTED[name]) == names
    assert case.variants[0].expected == case.property != HOLDS
    assert case.variants[-1].expected == HOLDS
    assert not case.variants[0].commit
    assert all(len(v.commit) in (0, 12) and v.version for v in case.variants[1:] if v.name != PROPOSED)
    assert case.doc
    assert case.title


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in EXPECTED for variant in EXPECTED[name]])
def test_the_verdict(name: str, variant: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    found = results[name, variant]
    states, story = EXPECTED[name][variant]
    assert (found["property"] or found["verdict"]) == found["expected"]
    assert found["as_expected"]
    assert found["complete"] == (found["expected"] == HOLDS)
    assert found["states"] == states
    assert bool(story) == (found["verdict"] == "violated")
    steps = iter(found["counterexample"])
    for thread, function, text in story:
        assert any(s["thread"].endswith(thread) and s["function"] == function and text in s["text"] for s in steps), (
            f"{thread}: {function}(): {text}"
        )


@pytest.mark.parametrize("name", CASES)
def test_no_verdict_is_the_reductions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "effort", 0)
    for variant in cases.load(name).variants:
        found = Check(variant.design, [], variant.scenario, reduce=False).run()
        broken = VIOLATIONS[found.status][0] if found.verdict == "violated" else found.verdict
        assert broken == variant.expected
        assert found.states >= EXPECTED[name][variant.name][0]


@pytest.mark.parametrize("name", CASES)
def test_a_counterexample_is_one_to_the_plain_explorer_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "effort", 0)
    for variant in cases.load(name).variants:
        if variant.expected in (HOLDS, "progress"):  # which is a matter of the whole graph
            continue
        found = Check(variant.design, [], variant.scenario)
        verdict = found.run()
        if verdict.status == arena.LOCK_ORDER:  # and this one of all that was explored before
            continue
        steps = trail(found, verdict)
        violation = Explorer(Check(variant.design, [], variant.scenario)).replay([(s.thread, s.choices) for s in steps])
        assert violation is not None
        assert violation.status == verdict.status


@pytest.mark.parametrize("name", EXPECTED)
def test_what_holds_got_somewhere(name: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    (found,) = (v for (case, _), v in results.items() if case == name and v["verdict"] == HOLDS)
    assert found["reached"] is None or found["reached"]["completed"]
    assert found["depth"] > 5


def test_the_document_is_the_cases_own(document: dict[str, Any]) -> None:
    written = (GOLDEN.parent.parent.parent / "docs" / "cases.md").read_text()
    assert written == run.markdown(document), "run: python -m faultpath.cases > docs/cases.md"


# --- the command


def check(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faultpath", "check", "--cases", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})


def test_the_table(document: dict[str, Any]) -> None:
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == GOLDEN.read_text(), "run: faultpath check --cases > tests/golden/cases.txt"


def test_a_case_by_name_is_shown_with_its_counterexamples() -> None:
    done = check("amdgpu-get-pages")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 cases, 3 verdicts, all as expected" in done.stdout
    assert "amdgpu-get-pages/buggy chunk-vs-reclaim: coherence: stale device PTE" in done.stdout
    assert "-- round and round from here:" in done.stdout
    again = next(line for line in done.stdout.splitlines() if line.startswith("Again: "))
    request = again.removeprefix("Again: faultpath check --cases ").split()
    assert request[:2] == ["amdgpu-get-pages/buggy", "--replay"]
    replayed = check(*request)
    assert replayed.returncode == 0
    assert "^^^^ stale device PTE" in replayed.stdout


def test_json() -> None:
    done = check("amdgpu-get-pages/first-fix", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["schema"] == "faultpath/cases/1"
    (case,) = document["cases"]
    (variant,) = case["variants"]
    assert (case["name"], case["commit"]) == ("amdgpu-get-pages", "c08972f55594, 342981fff328")
    assert (variant["variant"], variant["expected"], variant["property"]) == ("first-fix", "progress", "progress")
    assert variant["as_expected"]
    assert variant["counterexample"]


def test_a_verdict_that_is_not_as_expected_ends_with_1(document: dict[str, Any]) -> None:
    wrong = json.loads(json.dumps(document))
    wrong["cases"][0]["variants"][0] |= {"expected": HOLDS, "as_expected": False}
    assert run.status(document) == 0
    assert run.status(wrong) == 1
    shown = report.table(wrong)
    assert "violated: coherence (expected holds)" in shown[2]
    assert shown[-1].endswith("1 not as expected")


@pytest.mark.parametrize(
    "args", [["nonsense"], ["amdgpu-get-pages/nonsense"], ["-s", "fault-vs-fork"], ["--replay", "a"]]
)
def test_a_wrong_request_is_refused(args: list[str]) -> None:
    done = check(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("faultpath: ")
    assert done.stderr.count("\n") == 1


def test_no_case_is_imported_before_it_is_wanted() -> None:
    code = "import sys, faultpath.cases; sys.exit(any(m.startswith('faultpath.cases.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(FaultpathError, match="no case 'x'"):
        cases.load("x")
