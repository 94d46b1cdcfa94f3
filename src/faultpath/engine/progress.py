"""Progress: can threads go round for ever, fairly scheduled, and none of them get anywhere?

A pass of its own over the graph of a search that found nothing else, without symmetry. Time never runs out in it and
no allocation fails: a loop that only its time limit ends is one that does not end. A strongly connected part of the
graph is a livelock if a run may stay in it for ever although whoever can go on now and again does so (strong fairness):
every thread either moves inside it, or is never able to move there.
"""

from __future__ import annotations

from collections import deque

from faultpath.engine.arena import THREADS
from faultpath.engine.search import EDGES, FIRST_EDGE, FOUND
from faultpath.engine.world import Words
from faultpath.protocol.language import helper

# Words of each state, in a table at w[NODES]: order of the visit, lowest order reached, next edge to look at, caller.
ORDER, LOW, EDGE, CALLER = range(4)
NODE_WORDS = 4

BASE = (1 << 24) + 2048
NODES = BASE
STACK = BASE + 1  # first word of the stack of states whose part is not complete
PART = BASE + 2  # how many states the livelock found has


@helper(raw=True)
def first_edge(w: Words, state: int) -> int:
    """Number of a state's first edge."""
    return w[w[FIRST_EDGE] + state] >> 8


@helper(raw=True)
def target(w: Words, edge: int) -> int:
    """The state that an edge leads to, or -1 if it takes what a fair run may not count on."""
    entry = w[w[EDGES] + edge]
    return -1 if entry & 1 else entry >> 8


@helper(raw=True)
def is_livelock(w: Words, top: int, size: int) -> int:
    """Whether the part that is the last ``size`` states of the stack is one."""
    everybody = (1 << w[THREADS]) - 1
    movers = 0
    idle = everybody
    root = w[w[NODES] + NODE_WORDS * w[top - size] + LOW]
    for place in range(top - size, top):
        state = w[place]
        idle = idle & w[w[FIRST_EDGE] + state] & 255
        for edge in range(first_edge(w, state), first_edge(w, state + 1)):
            to = target(w, edge)
            if to >= 0 and w[w[NODES] + NODE_WORDS * to + LOW] == root:
                movers = movers | 1 << (w[w[EDGES] + edge] >> 4 & 15)
    return 1 if movers and movers | idle == everybody else 0


@helper(raw=True)
def visit(w: Words, start: int, order: int) -> int:
    """Tarjan's algorithm from one state, without recursion: a state of a livelock, or minus the next order."""
    nodes = w[NODES]
    state = start
    top = w[STACK]
    w[nodes + NODE_WORDS * state + CALLER] = -1
    while state >= 0:
        node = nodes + NODE_WORDS * state
        if w[node + ORDER] == 0:
            order += 1
            w[node + ORDER] = order
            w[node + LOW] = order
            w[node + EDGE] = first_edge(w, state)
            w[top] = state
            top += 1
        down = -1
        while down < 0 and w[node + EDGE] < first_edge(w, state + 1):
            to = target(w, w[node + EDGE])
            w[node + EDGE] += 1
            if to >= 0:
                other = nodes + NODE_WORDS * to
                if w[other + ORDER] == 0:
                    down = to
                elif w[other + ORDER] > 0:
                    w[node + LOW] = min(w[node + LOW], w[other + ORDER])
        if down >= 0:
            w[nodes + NODE_WORDS * down + CALLER] = state
            state = down
        else:
            if w[node + LOW] == w[node + ORDER]:
                size = 1
                while w[top - size] != state:
                    size += 1
                for place in range(top - size, top):
                    w[nodes + NODE_WORDS * w[place] + LOW] = w[node + LOW]
                if is_livelock(w, top, size):
                    w[PART] = size
                    w[STACK] = top - size
                    return state
                for place in range(top - size, top):
                    done = nodes + NODE_WORDS * w[place]
                    w[done + ORDER] = -1  # complete: no edge into it counts any more
                    w[done + LOW] = 0
                top -= size
            caller = w[node + CALLER]
            if caller >= 0 and w[node + ORDER] > 0:
                w[nodes + NODE_WORDS * caller + LOW] = min(w[nodes + NODE_WORDS * caller + LOW], w[node + LOW])
            state = caller
    return -order - 1


@helper(raw=True)
def livelock(w: Words) -> int:
    """A state of a livelock, or -1."""
    order = 0
    for start in range(w[FOUND]):
        if w[w[NODES] + NODE_WORDS * start + ORDER] == 0:
            found = visit(w, start, order)
            if found >= 0:
                return found
            order = -found - 1
    return -1


def way_round(w: Words, state: int, members: set[int]) -> list[int]:
    """The threads, in order, of a shortest way from a state back to itself inside a livelock."""
    edges, first = int(w[EDGES]), int(w[FIRST_EDGE])
    came: dict[int, tuple[int, int]] = {}
    queue = deque([state])
    while queue:
        here = queue.popleft()
        for edge in range(int(w[first + here]) >> 8, int(w[first + here + 1]) >> 8):
            entry = int(w[edges + edge])
            to, thread = entry >> 8, entry >> 4 & 15
            if entry & 1 or to not in members or to in came:
                continue
            came[to] = (here, thread)
            if to == state:
                return _back(came, state)
            queue.append(to)
    return []


def _back(came: dict[int, tuple[int, int]], state: int) -> list[int]:
    here, thread = came[state]
    way = [thread]
    while here != state:
        here, thread = came[here]
        way.append(thread)
    return way[::-1]
