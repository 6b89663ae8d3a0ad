import pytest

from earlydrop.training.config import ConfigError
from earlydrop.training.names import slug

FORBIDDEN = '<>:"/\\|?*'  # in names of files, on Windows


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("early 20%", "early-20pct"),
        (f"a{FORBIDDEN}b", "a-b"),
        ("ends with dots...", "ends-with-dots"),
        ("x" * 99 + ".y", "x" * 99),
        ("con", "_con"),
        ("Aux.1", "_Aux.1"),
        ("LPT3", "_LPT3"),
        ("console", "console"),
        ("com", "com"),
    ],
)
def test_a_name_that_every_system_takes(text, name):
    assert slug(text) == name


def test_nothing_is_left():
    with pytest.raises(ConfigError, match="use letters and digits"):
        slug("???")
