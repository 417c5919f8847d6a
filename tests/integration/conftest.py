"""Who tries bad input: a user, one without rights, one with a repository to publish to."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.user import NOBODY, User, needs_root


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture
def nobody() -> Iterator[User]:
    """Somebody without rights, in a folder that all may read. They may read everything, since this machine's Python
    may lie in root's home; they may write nothing and are not root."""
    needs_root()
    read_all = "+dac_read_search"
    become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="sluice-nobody-") as folder:
        Path(folder).chmod(0o755)
        yield User(Path(folder), (*become, "--inh-caps", read_all, "--ambient-caps", read_all))


@pytest.fixture
def stranger(nobody: User) -> User:
    """Somebody who may not even read everything."""
    made = User(nobody.folder, nobody.become[:6])
    if subprocess.run([*made.become, sys.executable, "-c", ""], capture_output=True, cwd="/").returncode:
        pytest.skip("this machine's Python lies where only root may look")
    return made


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty repository and its keys: made once, copied for each who needs one."""
    user = User(tmp_path_factory.mktemp("new-repository"))
    made = user.run("sluice-train", "publish", "init", "--repository", user.uri("releases"), "--keys", "keys")
    assert made.code == 0, made.said
    return user.folder


@pytest.fixture
def publisher(user: User, new_repository: Path) -> User:
    """A user with an empty repository and its keys."""
    shutil.copytree(new_repository, user.folder, dirs_exist_ok=True)
    return user
