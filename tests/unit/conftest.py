"""What the tests of the web server share."""

import pytest

from tests.webfiles import Authority


@pytest.fixture
def ca(tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server")
    return authority


@pytest.fixture
def write(tmp_path):
    """Write the web configuration file; returns its path."""

    def write_file(text):
        path = tmp_path / "web.yml"
        path.write_text(text)
        return path

    return write_file
