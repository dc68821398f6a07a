import warnings

import pytest
from support.fuzzing import PARSERS, fuzz

INPUTS = 10_000


@pytest.mark.torture
@pytest.mark.parametrize("name", PARSERS)
def test_a_file_with_anything_in_it_is_read_or_refused_ten_thousand_times(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(name, tmp_path, INPUTS, always_the_same=False)
    print(f"\n{name}: {INPUTS} inputs, each read or refused")
