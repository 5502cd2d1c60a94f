"""The pages that are made from code and config are as they would be made now."""

import pytest

from scripts import reference


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: path.name)
def test_the_committed_page_is_what_would_be_written(path):
    assert path.read_text() == reference.pages()[path], f"{path.name} is old; run {reference.COMMAND}"
