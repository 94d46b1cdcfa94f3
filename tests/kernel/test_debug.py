"""The debug kernel: each sin, committed by a thread or two, is found and called by its name."""

from __future__ import annotations

import pytest
from rig import Item

from engine.tape import Board, Thing, board_nothing, board_walk, design
from faultpath.design import Design
from faultpath.engine import arena, world
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.engine.trail import trail
from faultpath.kernel.mirror import device_walk
from faultpath.kernel.mmu_notifier import IntervalNode, Mm
from faultpath.kernel.primitives.ghost import callback_begins, callback_ends
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, off_stack, on_stack
from faultpath.kernel.primitives.itree import itree_insert, itree_remove, rb_clear_node
from faultpath.kernel.primitives.lists import hlist_add_head, hlist_del, hlist_first, hlist_next, queue_work
from faultpath.kernel.primitives.locks import (
    down_read,
    down_read_trylock,
    down_write,
    downgrade_write,
    mutex_lock,
    mutex_lock_nested,
    mutex_trylock,
    mutex_unlock,
    read_lock,
    refcount_dec_and_test,
    refcount_inc,
    refcount_set,
    spin_lock,
    spin_unlock,
    up_read,
    up_write,
    write_lock,
)
from faultpath.kernel.srcu import srcu_read_lock, srcu_read_unlock, synchronize_srcu
from faultpath.protocol.language import protocol, wait_until
from faultpath.protocol.struct import IntervalTree, Struct
from faultpath.scenario import DEVICE, Call, Scenario, close


class Forest(Struct):
    tree: IntervalTree


# --- lifetime


@protocol
def uses_after_free(board: Board) -> int:
    thing = kmalloc(Thing, GFP_KERNEL)
    board.thing = thing
    kfree(thing)
    return thing.value


@protocol
def locks_after_free(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    kfree(thing)
    mutex_lock(thing.mutex)


@protocol
def links_after_free(board: Board) -> None:
    first = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(first.node, board.list)
    kfree(first)
    second = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(second.node, board.list)


@protocol
def frees_twice(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    kfree(thing)
    kfree(thing)


@protocol
def frees_what_it_finds(board: Board) -> None:
    thing = board.thing
    if thing:
        kfree(thing)
        board.thing = Thing(0)


@protocol
def makes(board: Board) -> None:
    board.thing = kmalloc(Thing, GFP_KERNEL)


@protocol
def reads_what_it_finds(board: Board) -> int:
    thing = board.thing
    return thing.value if thing else 0


@protocol
def reads_null(board: Board) -> int:
    return board.other.value


@protocol
def writes_null(board: Board) -> None:
    board.other.value = 1


@protocol
def lists_null(board: Board) -> int:
    return hlist_next(board.other.node)


@protocol
def reads_a_number(board: Board) -> int:
    return Thing(123456789).value


@protocol
def reads_past_the_end(board: Board) -> int:
    return Thing(board + 1 - 1 + 4096).value


@protocol
def raises_from_zero(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    refcount_inc(thing.ref)


@protocol
def drops_below_zero(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    refcount_set(thing.ref, 1)
    refcount_dec_and_test(thing.ref)
    refcount_dec_and_test(thing.ref)


# --- locks


@protocol
def one_then_other(board: Board) -> None:
    mutex_lock(board.mutex)
    mutex_lock(board.second)
    mutex_unlock(board.second)
    mutex_unlock(board.mutex)


@protocol
def other_then_one(board: Board) -> None:
    mutex_lock(board.second)
    mutex_lock(board.mutex)
    mutex_unlock(board.mutex)
    mutex_unlock(board.second)


@protocol
def both_orders(board: Board) -> None:
    one_then_other(board)
    other_then_one(board)


@protocol
def other_order_if_free(board: Board) -> None:
    mutex_lock(board.second)
    if mutex_trylock(board.mutex):
        mutex_unlock(board.mutex)
    mutex_unlock(board.second)


@protocol
def around_in_three(board: Board) -> None:
    mutex_lock(board.mutex)
    down_read(board.sem)
    up_read(board.sem)
    mutex_unlock(board.mutex)
    down_write(board.sem)
    mutex_lock(board.second)
    mutex_unlock(board.second)
    up_write(board.sem)
    other_then_one(board)


@protocol
def two_of_a_class(board: Board) -> None:
    first = kmalloc(Thing, GFP_KERNEL)
    second = kmalloc(Thing, GFP_KERNEL)
    mutex_lock(first.mutex)
    mutex_lock(second.mutex)
    mutex_unlock(second.mutex)
    mutex_unlock(first.mutex)


@protocol
def one_inside_another(board: Board) -> None:
    first = kmalloc(Thing, GFP_KERNEL)
    second = kmalloc(Thing, GFP_KERNEL)
    mutex_lock(first.mutex)
    mutex_lock_nested(second.mutex)
    mutex_unlock(second.mutex)
    mutex_unlock(first.mutex)
    kfree(first)
    kfree(second)


@protocol
def one_inside_another_both_ways(board: Board) -> None:
    one_inside_another(board)
    second = kmalloc(Thing, GFP_KERNEL)
    first = kmalloc(Thing, GFP_KERNEL)
    mutex_lock_nested(second.mutex)
    mutex_lock(first.mutex)
    mutex_unlock(first.mutex)
    mutex_unlock(second.mutex)


@protocol
def locks_twice(board: Board) -> None:
    mutex_lock(board.mutex)
    mutex_lock(board.mutex)


@protocol
def spins_twice(board: Board) -> None:
    spin_lock(board.spin)
    spin_lock(board.spin)


@protocol
def reads_twice(board: Board) -> None:
    down_read(board.sem)
    down_read(board.sem)


@protocol
def reads_what_it_writes(board: Board) -> None:
    down_write(board.sem)
    down_read(board.sem)


@protocol
def unlocks(board: Board) -> None:
    mutex_unlock(board.mutex)


@protocol
def unspins(board: Board) -> None:
    spin_unlock(board.spin)


@protocol
def unreads(board: Board) -> None:
    up_read(board.sem)


@protocol
def unreads_what_it_writes(board: Board) -> None:
    down_write(board.sem)
    up_read(board.sem)


@protocol
def downgrades(board: Board) -> None:
    downgrade_write(board.sem)


@protocol
def downgrades_what_it_reads(board: Board) -> None:
    down_read(board.sem)
    downgrade_write(board.sem)


@protocol
def holds_and_waits(board: Board) -> None:
    mutex_lock(board.mutex)
    wait_until(board.x != 0)
    mutex_unlock(board.mutex)


@protocol
def unlocks_for_another(board: Board) -> None:
    if board.y == 0:
        mutex_unlock(board.mutex)
    board.x = 1


@protocol
def sleeps_spinning(board: Board) -> None:
    spin_lock(board.spin)
    mutex_lock(board.mutex)


@protocol
def sleeps_reading(board: Board) -> None:
    read_lock(board.rw)
    mutex_lock(board.mutex)


@protocol
def sleeps_writing(board: Board) -> None:
    write_lock(board.rw)
    mutex_lock(board.mutex)


@protocol
def allocates_spinning(board: Board) -> None:
    spin_lock(board.spin)
    kmalloc(Thing, GFP_KERNEL)


@protocol
def synchronizes_spinning(board: Board) -> None:
    spin_lock(board.spin)
    synchronize_srcu(board.srcu)


@protocol
def sleeps_in_callback(board: Board) -> None:
    callback_begins(0)
    mutex_lock(board.mutex)


@protocol
def allocates_in_callback(board: Board) -> None:
    callback_begins(0)
    kmalloc(Thing, GFP_KERNEL)


@protocol
def maps_in_callback(board: Board) -> None:
    callback_begins(1)
    down_read(board.mm.mmap_lock)


@protocol
def behaves_in_callbacks(board: Board) -> None:
    callback_begins(0)
    if mutex_trylock(board.mutex):
        mutex_unlock(board.mutex)
    spin_lock(board.spin)
    spin_unlock(board.spin)
    if down_read_trylock(board.sem):
        up_read(board.sem)
    callback_ends(0)
    callback_begins(1)
    mutex_lock(board.mutex)
    mutex_unlock(board.mutex)
    callback_ends(1)
    down_write(board.mm.mmap_lock)
    mutex_lock(board.mutex)
    downgrade_write(board.mm.mmap_lock)
    mutex_unlock(board.mutex)
    up_read(board.mm.mmap_lock)


@protocol
def keeps(board: Board) -> None:
    mutex_lock(board.mutex)


@protocol
def keeps_reading(board: Board) -> None:
    down_read(board.sem)


@protocol
def keeps_downgraded(board: Board) -> None:
    down_write(board.sem)
    downgrade_write(board.sem)


# --- lists, trees, and others


@protocol
def adds_twice(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(thing.node, board.list)
    hlist_add_head(thing.node, board.list)


@protocol
def deletes_twice(board: Board) -> None:
    thing = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(thing.node, board.list)
    hlist_del(thing.node)
    hlist_del(thing.node)


@protocol
def inserts_twice(board: Board) -> None:
    forest = on_stack(Forest)
    root = on_stack(IntervalNode)
    rb_clear_node(root)
    itree_insert(forest.tree, root)
    node = on_stack(IntervalNode)
    node.start = 5
    rb_clear_node(node)
    itree_insert(forest.tree, node)
    itree_insert(forest.tree, node)


@protocol
def inserts_the_root_twice(board: Board) -> None:
    forest = on_stack(Forest)
    node = on_stack(IntervalNode)
    rb_clear_node(node)
    itree_insert(forest.tree, node)
    itree_insert(forest.tree, node)


@protocol
def erases_twice(board: Board) -> None:
    forest = on_stack(Forest)
    node = on_stack(IntervalNode)
    rb_clear_node(node)
    itree_insert(forest.tree, node)
    itree_remove(forest.tree, node)
    itree_remove(forest.tree, node)


@protocol
def inserts_and_erases(board: Board) -> None:
    forest = on_stack(Forest)
    node = on_stack(IntervalNode)
    rb_clear_node(node)
    itree_insert(forest.tree, node)
    itree_remove(forest.tree, node)
    itree_insert(forest.tree, node)
    itree_remove(forest.tree, node)
    off_stack(node)
    off_stack(forest)
    thing = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(thing.node, board.list)
    hlist_del(thing.node)
    hlist_add_head(thing.node, board.list)
    hlist_del(thing.node)
    kfree(thing)


@protocol
def calls_nobody(board: Board) -> int:
    return device_walk(12345, board, 0)


@protocol
def divides(board: Board) -> int:
    return 1 // board.x


@protocol
def leaves_srcu(board: Board) -> None:
    srcu_read_unlock(board.srcu, 0)


@protocol
def synchronizes_inside(board: Board) -> None:
    idx = srcu_read_lock(board.srcu)
    synchronize_srcu(board.srcu)
    srcu_read_unlock(board.srcu, idx)


@protocol
def waits_for_nothing(board: Board) -> None:
    wait_until(board.x != 0)


@protocol
def asks_for_ever(board: Board) -> None:
    while board.x == 0:
        pass


@protocol
def turns_for_ever(board: Board) -> None:
    turns = board.x
    while turns >= 0:
        turns = turns + 1 & 7


@protocol
def counts_to_a_thousand(board: Board) -> int:
    turns = board.x
    while turns < 1000:
        turns += 1
    return turns


@protocol
def item_is_done(item: Item) -> None:
    off_stack(item)


@protocol
def queues(board: Board) -> None:
    item = on_stack(Item)
    queue_work(item.work, item_is_done, item)


@protocol
def queues_and_frees(board: Board) -> None:
    item = on_stack(Item)
    queue_work(item.work, item_is_done, item)
    off_stack(item)


SINS = [
    (arena.USE_AFTER_FREE, [uses_after_free]),
    (arena.USE_AFTER_FREE, [locks_after_free]),
    (arena.USE_AFTER_FREE, [links_after_free]),
    (arena.USE_AFTER_FREE, [makes, frees_what_it_finds, reads_what_it_finds]),
    (arena.USE_AFTER_FREE, [queues_and_frees]),
    (world.DOUBLE_FREE, [frees_twice]),
    (world.DOUBLE_FREE, [makes, frees_what_it_finds, frees_what_it_finds]),
    (arena.NULL_POINTER, [reads_null]),
    (arena.NULL_POINTER, [writes_null]),
    (arena.NULL_POINTER, [lists_null]),
    (arena.WILD_POINTER, [reads_a_number]),
    (arena.WILD_POINTER, [reads_past_the_end]),
    (world.REFCOUNT, [raises_from_zero]),
    (world.REFCOUNT, [drops_below_zero]),
    (arena.LOCK_ORDER, [one_then_other, other_then_one]),
    (arena.LOCK_ORDER, [both_orders]),
    (arena.LOCK_ORDER, [around_in_three]),
    (arena.LOCK_ORDER, [two_of_a_class]),
    (arena.LOCK_ORDER, [one_inside_another_both_ways]),
    (arena.SELF_DEADLOCK, [locks_twice]),
    (arena.SELF_DEADLOCK, [spins_twice]),
    (arena.SELF_DEADLOCK, [reads_twice]),
    (arena.SELF_DEADLOCK, [reads_what_it_writes]),
    (arena.NOT_HELD, [unlocks]),
    (arena.NOT_HELD, [unspins]),
    (arena.NOT_HELD, [unreads]),
    (arena.NOT_HELD, [unreads_what_it_writes]),
    (arena.NOT_HELD, [downgrades]),
    (arena.NOT_HELD, [downgrades_what_it_reads]),
    (arena.NOT_HELD, [holds_and_waits, unlocks_for_another]),
    (arena.SLEEP_IN_ATOMIC, [sleeps_spinning]),
    (arena.SLEEP_IN_ATOMIC, [sleeps_reading]),
    (arena.SLEEP_IN_ATOMIC, [sleeps_writing]),
    (arena.SLEEP_IN_ATOMIC, [allocates_spinning]),
    (arena.SLEEP_IN_ATOMIC, [synchronizes_spinning]),
    (arena.SLEEP_NON_BLOCK, [sleeps_in_callback]),
    (arena.SLEEP_NON_BLOCK, [allocates_in_callback]),
    (arena.MMAP_LOCK_IN_CALLBACK, [maps_in_callback]),
    (arena.HELD_AT_EXIT, [keeps]),
    (arena.HELD_AT_EXIT, [keeps_reading]),
    (arena.HELD_AT_EXIT, [keeps_downgraded]),
    (arena.LIST_ADD, [adds_twice]),
    (arena.LIST_DEL, [deletes_twice]),
    (arena.TREE_INSERT, [inserts_twice]),
    (arena.TREE_INSERT, [inserts_the_root_twice]),
    (world.TREE, [erases_twice]),
    (world.BAD_ADDRESS, [calls_nobody]),
    (world.BAD_ADDRESS, [leaves_srcu]),
    (world.DIVISION, [divides]),
    (arena.DEADLOCK, [waits_for_nothing]),
    (arena.DEADLOCK, [synchronizes_inside]),
    (arena.SPINS, [turns_for_ever]),
]


def scenario(*threads) -> Scenario:
    return Scenario("sin", "", [], [Call(p.__name__, p, (DEVICE,)) for p in threads], pages=0)


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize(
    ("status", "threads"), SINS, ids=lambda v: "-".join(p.__name__ for p in v) if isinstance(v, list) else str(v)
)
def test_a_sin_is_found(status, threads, reduce):
    check = Check(design, [], scenario(*threads), reduce=reduce)
    found = check.run()
    assert found.verdict == "violated"
    assert VIOLATIONS.get(found.status) == VIOLATIONS[status]
    steps = trail(check, found)
    assert bool(steps and steps[-1].fatal) == (status != arena.DEADLOCK)


@pytest.mark.parametrize(
    "threads",
    [
        [behaves_in_callbacks, behaves_in_callbacks],
        [one_inside_another],
        [inserts_and_erases],
        [one_then_other, one_then_other],
        [one_then_other, other_order_if_free],
        [counts_to_a_thousand],
        [queues],
        [makes, reads_what_it_finds],
    ],
    ids=lambda threads: "-".join(p.__name__ for p in threads),
)
def test_what_is_allowed_is_not_called_a_sin(threads):
    for reduce in True, False:
        found = Check(design, [], scenario(*threads), reduce=reduce).run()
        assert (found.verdict, found.status) == ("holds", 0)


def test_a_loop_over_what_nobody_changes_spins():
    found = Check(design, [], scenario(asks_for_ever)).run()
    assert found.status == arena.SPINS


# --- the end, and a design's own rule


@protocol
def desk_open(mm: Mm) -> Board:
    return on_stack(Board)


@protocol
def desk_close(board: Board) -> None:
    item = hlist_first(board.list)
    while item:
        hlist_del(Thing(item - 4).node)
        kfree(Thing(item - 4))
        item = hlist_first(board.list)


@protocol
def desk_rule(board: Board) -> int:
    return 7 if board.x == 2 and board.y == 2 else 0


@protocol
def lists_a_thing(board: Board) -> None:
    mutex_lock(board.mutex)
    thing = kmalloc(Thing, GFP_KERNEL)
    hlist_add_head(thing.node, board.list)
    mutex_unlock(board.mutex)


@protocol
def x_is_two(board: Board) -> None:
    board.x = 2
    board.x = 3


@protocol
def y_is_two(board: Board) -> None:
    if board.x == 2:
        board.y = 2


desk = Design(
    name="desk",
    title="a board that is closed",
    source="none",
    open=desk_open,
    fault=board_nothing,
    walk=board_walk,
    close=desk_close,
    ops=[],
    invariant=desk_rule,
)


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
def test_what_is_left_after_the_file_is_closed_leaks(reduce):
    threads = [Call("a", lists_a_thing, (DEVICE,)), close()]
    found = Check(desk, [], Scenario("leak", "", [], threads, pages=0), reduce=reduce).run()
    assert found.status == arena.LEAK  # the thing came after the file was closed
    setup = [Call("a", lists_a_thing, (DEVICE,))]
    found = Check(desk, [], Scenario("no leak", "", setup, [close()], pages=0), reduce=reduce).run()
    assert found.verdict == "holds"


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
def test_a_design_brings_a_rule_of_its_own(reduce):
    found = Check(desk, [], scenario(x_is_two, y_is_two), reduce=reduce).run()
    assert (found.status, found.arg) == (arena.CUSTOM, 7)
    assert Check(desk, [], scenario(x_is_two, reads_null), reduce=reduce).run().status == arena.NULL_POINTER
    assert Check(desk, [], scenario(x_is_two), reduce=reduce).run().verdict == "holds"


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
def test_an_order_of_locks_is_refused_however_often_it_was_met(reduce):
    """The random executions before the search meet it first."""
    check = Check(design, [], scenario(both_orders), reduce=reduce)
    assert [check.run().status for _ in range(3)] == [arena.LOCK_ORDER] * 3
