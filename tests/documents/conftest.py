"""One folder per document, in which its commands run in its order."""

import pytest

import workspace


@pytest.fixture(scope="session")
def public_data(tmp_path_factory):
    return workspace.public_data(tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="session")
def workspaces(tmp_path_factory, public_data):
    """`workspaces("README.md")` -> the folder of that document; the same one whenever it is asked for."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = workspace.Workspace(tmp_path_factory.mktemp("reader"), public_data)
        return made[name]

    return of


@pytest.fixture
def command(in_process, public_data, tmp_path):
    """`command("train", "fold=0", ...)`, in this process, beside the reader's data -> (exit status, stdout, stderr)."""
    for path in public_data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return in_process
