"""struct list_head: circular lists of embedded nodes. A head and a node are the same structure, and may be both.

Words: 0 next, 1 prev. What points to itself in C (INIT_LIST_HEAD) holds zeros here: new objects are initialized.
"""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.debug import list_add_valid
from faultpath.protocol.language import ForEach, helper, primitive
from faultpath.protocol.struct import ListHead

LIST_POISON1, LIST_POISON2 = 0x100, 0x122  # no object is there


@primitive
def list_empty(w: Words, head: ListHead) -> int:
    """list_empty(): whether a list has no entries, or a node is in no list."""
    return 1 if w[head] == 0 else 0


@primitive
def list_first(w: Words, head: ListHead) -> int:
    """list_first_entry_or_null(): the first node's address, or 0."""
    return w[head]


@primitive
def list_next(w: Words, node: ListHead, head: ListHead) -> int:
    """The node after this one in the list of ``head``, or 0. A node that has left the list is its own next, as in C."""
    following = w[node]
    if following == 0:
        return node
    return 0 if following == head else following


list_for_each_entry = ForEach(list_first, list_next)
list_for_each_entry_safe = ForEach(list_first, list_next, safe=True)


@primitive
def list_add_tail(w: Words, node: ListHead, head: ListHead) -> int:
    """list_add_tail()."""
    if w[node] != LIST_POISON1:
        list_add_valid(w, node)
    last = w[head + 1] if w[head + 1] else head
    w[node] = head
    w[node + 1] = last
    w[last] = node
    w[head + 1] = node
    return 0


@helper
def list_del_entry(w: Words, node: int) -> int:
    """__list_del_entry(): the node's neighbours are each other's; 0 where it is in no list."""
    following = w[node]
    before = w[node + 1]
    if following == 0:
        return 0
    alone = following == before  # only the head is left
    w[following + 1] = 0 if alone else before
    w[before] = 0 if alone else following
    return 1


@primitive
def list_del(w: Words, node: ListHead) -> int:
    """list_del(): take a node out of its list. It is poisoned: it leads nowhere, and does not look as in no list."""
    list_del_entry(w, node)
    w[node] = LIST_POISON1
    w[node + 1] = LIST_POISON2
    return 0


@primitive
def list_del_init(w: Words, node: ListHead) -> int:
    """list_del_init(): take a node out of its list; nothing where it is in none."""
    if list_del_entry(w, node):
        w[node] = 0
        w[node + 1] = 0
    return 0
