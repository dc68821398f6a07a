import warnings

import pytest
from support.fuzzing import PARSERS, fuzz


@pytest.mark.parametrize("name", PARSERS)
def test_a_file_with_anything_in_it_is_read_or_refused(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(name, tmp_path, 40, always_the_same=True)
