#!/bin/sh
# A repository of 1,500 commits, made by git itself. It is what git repack then packs, under the recorder.
set -eu
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
git init -q history
i=0
while [ $i -lt 1500 ]; do
    i=$((i + 1))
    echo "commit refs/heads/main"
    echo "committer A <a@example.org> $((1000000000 + i)) +0000"
    echo "data 1"
    echo "."
    for file in 1 2 3; do
        body=$(seq $((i * file)) $((i * file + 1500)))
        echo "M 644 inline file-$((i % 40 * file))"
        echo "data ${#body}"
        echo "$body"
    done
done | git -C history fast-import --quiet
