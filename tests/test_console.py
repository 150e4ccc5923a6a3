import warnings

import pytest

from mobileprune.console import exit_code, one_line
from mobileprune.errors import MobilePruneWarning, ModelError


def test_an_error_is_one_line_that_no_terminal_obeys():
    assert one_line(ModelError("The file\n  is \x1b[31mdamaged\x07.")) == "The file is \ufffd[31mdamaged\ufffd."
    assert one_line(ModelError("Größe: 1×1 …")) == "Größe: 1×1 …"


def test_an_error_is_printed_and_two_is_the_exit_code(capsys):
    def job():
        raise ModelError("No\nmodel.")

    assert exit_code(job) == 2
    assert capsys.readouterr().err == "error: No model.\n"
    assert exit_code(lambda: 0) == 0


def test_a_warning_of_ours_is_one_line_and_others_are_as_they_were(capsys):
    def job():
        warnings.warn("Too few\nimages.", MobilePruneWarning, stacklevel=1)
        warnings.warn("Something else.", UserWarning, stacklevel=1)
        return 0

    with pytest.warns(UserWarning, match=r"Something else\."):
        assert exit_code(job) == 0
    assert capsys.readouterr().err == "warning: Too few images.\n"
