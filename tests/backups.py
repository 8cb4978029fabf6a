"""The commands of docs/backup.md, as somebody would paste them."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "backup.md"
SQLITE, POSTGRES, FILES, POSTGRES_BACK, PLACES, LOOK = re.findall(
    r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)


def paste(block, folder, **variables):
    """Run one block in a folder that has the environment of this one."""
    environment = folder / ".venv"
    if not environment.exists() and block is not FILES:
        environment.symlink_to(Path(sys.executable).parents[1])
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
