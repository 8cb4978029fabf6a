#!/usr/bin/env bash
# py3langid 0.4.0: loading its model of 4.4 MiB writes 65 MiB into the temporary folder, in every process.
#
# Expected: telling a text's language reads a file of the package and writes none; 0.3.0 does so.
# Seen: the model is unpacked into a file of the temporary folder, which is deleted after it was read. In a container whose
#   /tmp is a small memory disk (64 MiB is a usual size) the first text ends in "No space left on device".
# Matters: an evaluation or a preparation fails where only reading is expected, beside tens of gigabytes that are free for
#   data and models; several processes that start at once need as many times 65 MiB.
# Until that changes: give TMPDIR 65 MiB for each process that starts.
# Output seen:
#   0.4.0: the largest temporary file has 65.1 MiB; with room for 64 MiB: OSError
#   0.3.0: no temporary file; with room for 64 MiB: en
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > load.py <<'PYTHON'
import resource
import sys
import tempfile

real, largest = tempfile.TemporaryFile, [0.0]


class Watched:
    """A temporary file that tells how large it was when it is closed."""

    def __init__(self, *arguments, **options):
        self.file = real(*arguments, **options)

    def __enter__(self):
        return self.file

    def __exit__(self, *_):
        largest[0] = max(largest[0], self.file.seek(0, 2) / 2**20)
        self.file.close()


tempfile.TemporaryFile = Watched
if sys.argv[1:]:  # no file may grow beyond so many bytes, which is what a disk of that size does
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
import py3langid

try:
    told = py3langid.classify("When does the museum open on Sunday?")[0]
except OSError as error:
    told = type(error).__name__
print(told if sys.argv[1:] else f"{largest[0]:.1f}")
PYTHON
for version in 0.4.0 0.3.0; do
  python3 -m venv "env-$version"
  "env-$version/bin/pip" install --quiet "py3langid==$version"
  size=$("env-$version/bin/python" load.py)
  told=$("env-$version/bin/python" load.py $((64 * 1024 * 1024)))
  if [ "$size" = 0.0 ]; then size="no temporary file"; else size="the largest temporary file has $size MiB"; fi
  echo "$version: $size; with room for 64 MiB: $told"
done | tee found
cat > expected <<'TEXT'
0.4.0: the largest temporary file has 65.1 MiB; with room for 64 MiB: OSError
0.3.0: no temporary file; with room for 64 MiB: en
TEXT
diff expected found >&2 || { echo "the behaviour has changed" >&2; exit 1; }
