#!/bin/sh
# Beside the server: fill it, fork a snapshot (BGSAVE), write into every tenth value while it is being saved, stop it.
set -eu
cli="redis-cli -s redis.sock"
until $cli ping >/dev/null 2>&1; do sleep 0.1; done
$cli debug populate 60000 key 500 >/dev/null
for round in 1 2; do
    $cli bgsave >/dev/null
    i=0
    while [ $i -lt 6000 ]; do
        echo "setrange key:$((i * 10 + round)) 100 round-$round"
        i=$((i + 1))
    done | $cli --pipe >/dev/null
    while $cli info persistence | grep -q bgsave_in_progress:1; do sleep 0.1; done
done
$cli flushall >/dev/null
$cli shutdown nosave
