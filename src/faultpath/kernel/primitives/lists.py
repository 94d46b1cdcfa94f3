"""hlist: a list of embedded nodes, and the queue of work items."""

from __future__ import annotations

from faultpath.engine.world import WORK_HEAD, WORK_TAIL, Words
from faultpath.kernel.primitives.debug import list_add_valid, list_del_valid
from faultpath.protocol.language import ForEach, helper, primitive
from faultpath.protocol.struct import HlistHead, HlistNode, Work


@primitive
def hlist_first(w: Words, head: HlistHead) -> int:
    """The first node's address, or 0."""
    return w[head]


@primitive
def hlist_next(w: Words, node: HlistNode) -> int:
    """The node after this one, or 0."""
    return w[node]


hlist_for_each_entry = ForEach(hlist_first, hlist_next)
hlist_for_each_entry_safe = ForEach(hlist_first, hlist_next, safe=True)


@primitive
def hlist_add_head(w: Words, node: HlistNode, head: HlistHead) -> int:
    """Put a node at the front."""
    list_add_valid(w, node)
    first = w[head]
    w[node] = first
    w[node + 1] = head
    if first:
        w[first + 1] = node
    w[head] = node
    return 0


@helper
def unlink(w: Words, node: int) -> int:
    """Take a node out of whatever list it is in; it still points to the next."""
    list_del_valid(w, node)
    following = w[node]
    w[w[node + 1]] = following
    if following:
        w[following + 1] = w[node + 1]
    w[node + 1] = 0
    return 0


@primitive
def hlist_del(w: Words, node: HlistNode) -> int:
    """Take a node out of whatever list it is in."""
    unlink(w, node)
    w[node] = 0
    return 0


@primitive
def hlist_del_init_rcu(w: Words, node: HlistNode) -> int:
    """hlist_del_init_rcu(): take a node out; who stands at it can still go on to the next."""
    return unlink(w, node)


@primitive
def hlist_unhashed(w: Words, node: HlistNode) -> int:
    """hlist_unhashed(): whether a node is in no list."""
    return 1 if w[node + 1] == 0 else 0


@primitive
def queue_work(w: Words, work: Work, handler: int, obj: int) -> int:
    """Queue a work item for its worker; 1 if queued, 0 if it was pending already."""
    if w[work + 1]:
        return 0
    w[work] = 0
    w[work + 1] = handler
    w[work + 2] = obj
    if w[WORK_HEAD]:
        w[w[WORK_TAIL]] = work
    else:
        w[WORK_HEAD] = work
    w[WORK_TAIL] = work
    return 1


@primitive
def cancel_work(w: Words, work: Work) -> int:
    """cancel_work(): take a work item off the queue if it is pending: 1 if it was. One that runs is not waited for."""
    if w[work + 1] == 0:
        return 0
    before = 0
    found = w[WORK_HEAD]
    while found != work:
        before = found
        found = w[found]
    if before:
        w[before] = w[work]
    else:
        w[WORK_HEAD] = w[work]
    if w[WORK_TAIL] == work:
        w[WORK_TAIL] = before
    w[work + 1] = 0
    return 1


@primitive
def work_pending(w: Words) -> int:
    """Whether a work item is queued; its address, or 0."""
    return w[WORK_HEAD]


@primitive
def take_work(w: Words) -> int:
    """Take the oldest queued work item off the queue; its address, or 0."""
    work = w[WORK_HEAD]
    if work:
        w[WORK_HEAD] = w[work]
        if w[WORK_HEAD] == 0:
            w[WORK_TAIL] = 0
    return work


@primitive
def work_object(w: Words, work: int) -> int:
    """The object that a work item taken off the queue is for."""
    return w[work + 2]


@primitive
def start_work(w: Words, work: int) -> int:
    """Mark a work item as running: it may be queued again. Returns its handler."""
    handler = w[work + 1]
    w[work + 1] = 0
    return handler


@primitive
def insert_wq_barrier(w: Words, barrier: Work, target: Work, handler: int, obj: int) -> int:
    """insert_wq_barrier(): queue ``barrier`` right behind ``target`` if that is queued, else before everything.

    With one worker, what is queued before everything runs as soon as the item that is running now is over.
    """
    before = w[WORK_HEAD]
    while before and before != target:
        before = w[before]
    w[barrier + 1] = handler
    w[barrier + 2] = obj
    w[barrier] = w[target] if before else w[WORK_HEAD]
    if w[barrier] == 0:
        w[WORK_TAIL] = barrier
    if before:
        w[target] = barrier
    else:
        w[WORK_HEAD] = barrier
    return 0
