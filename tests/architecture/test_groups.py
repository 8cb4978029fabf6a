import os
import subprocess
import sys

TEST = """
import os
import pytest

@pytest.mark.xdist_group("servers")
@pytest.mark.parametrize("number", range(6))
def test_where(number):
    open(os.environ["SEEN"], "a").write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_tests_of_one_group_share_a_process(tmp_path):
    """Without it, fixtures that start servers are made in every process, all at once."""
    (tmp_path / "test_group.py").write_text(TEST)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-c", os.devnull,
         "--rootdir", ".", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "SEEN": str(tmp_path / "seen.txt")},
        check=True,
    )  # fmt: skip
    seen = (tmp_path / "seen.txt").read_text().split()
    assert len(seen) == 6
    assert len(set(seen)) == 1
