#!/usr/bin/env bash
# datasets 5.2.0: a stream's saved position is ignored in any epoch but its own, and in its own counts for every pass.
#
# Expected: after load_state_dict the next pass reads what was left, and later passes read everything.
# Seen: the state names the epoch it was saved in, and is looked at only while the stream is in that epoch; loading does
#   not put the stream there. A run that saved in its second epoch starts the data anew when it goes on, unless it also
#   calls set_epoch. Where the epoch is the same the state is never used up: every later pass reads the same rest
#   (datasets#7447 has this second half, and calls it intended). No warning. So it is for all that is made of streams:
#   map, filter, batch, interleave, concatenate, take, skip, repeat, shard.
# Matters: a resumed run reads the rows it had already seen, or goes round in the last few for all the epochs that
#   follow, and its losses show nothing that looks wrong.
# Until that changes: call set_epoch before every pass, when going on as well, with the number of the epoch.
# Output seen (10 rows, position saved after 7):
#   saved in epoch 0, loaded:                         passes read 3, 3 and 3 rows
#   saved in epoch 1, loaded:                         passes read 10, 10 and 10 rows
#   saved in epoch 1, loaded, set_epoch(1), (2), (3): passes read 3, 10 and 10 rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet datasets==5.2.0
HF_HUB_OFFLINE=1 HF_HOME="$folder" env/bin/python - <<'PYTHON'
from datasets import Dataset


def stream():
    return Dataset.from_dict({"row": list(range(10))}).to_iterable_dataset(num_shards=2)


def saved_in(epoch):
    """The state after 7 rows of an epoch, taken while the eighth is still to come."""
    rows = stream()
    rows.set_epoch(epoch)
    reader = iter(rows)
    for _ in range(7):
        next(reader)
    return rows.state_dict()


def passes(label, state, epochs=(None, None, None)):
    rows = stream()
    rows.load_state_dict(state)
    read = []
    for epoch in epochs:
        if epoch is not None:
            rows.set_epoch(epoch)
        read.append(len(list(rows)))
    print(f"{label + ':':<49} passes read {read[0]}, {read[1]} and {read[2]} rows")
    return read


first = passes("saved in epoch 0, loaded", saved_in(0))
second = passes("saved in epoch 1, loaded", saved_in(1))
told = passes("saved in epoch 1, loaded, set_epoch(1), (2), (3)", saved_in(1), (1, 2, 3))
expected = first == [3, 3, 3] and second == [10, 10, 10] and told == [3, 10, 10]
raise SystemExit(0 if expected else "the behaviour has changed")
PYTHON
