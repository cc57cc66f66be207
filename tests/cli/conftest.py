"""What the tests of the command line share: a bundle, and engines on the toy model."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import make_engine  # noqa: F401
from tests.tiny import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "source", "sdar")


@pytest.fixture(scope="session")
def bundle(checkpoint):
    from dlm_edge.export import export

    export(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"
