"""The arguments of a user's function: their types, and what cannot be passed."""

from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from earlydrop.training.arguments import arguments, fit
from earlydrop.training.fields import ConfigError


def test_a_choice_has_the_type_of_the_annotation():
    assert fit(2, Literal[1, 2], "depth") == 2
    for value in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match=f"depth is {value!r}: expected Literal"):
            fit(value, Literal[1, 2], "depth")


def test_a_union_keeps_the_exact_type():
    assert type(fit(3, float | int, "width")) is int
    assert type(fit(3, float | str, "width")) is float


def test_a_named_tuple_has_the_types_of_its_fields():
    class Faces(NamedTuple):
        folder: Path

    values = arguments("data", "mydata:Faces", Faces, {"folder": "x"}, {})
    assert values == {"folder": Path("x")}


def test_a_required_parameter_that_has_no_name_outside_is_refused():
    def faces(folder, /, size=8):
        return folder, size

    with pytest.raises(ConfigError, match=r"parameter 'folder' cannot be passed by name"):
        arguments("data", "mydata:faces", faces, {}, {})
    assert arguments("model", "mymodels:build", faces, {"size": 4}, {}, positional=1) == {"size": 4}
