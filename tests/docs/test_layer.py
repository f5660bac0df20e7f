import doctest
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[2] / "docs" / "layer.md"


@pytest.mark.slow
def test_the_examples_of_the_page_on_the_layer_run():
    failed, attempted = doctest.testfile(
        str(_PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert attempted > 15
    assert failed == 0
