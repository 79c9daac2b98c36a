"""Errors of Hydra become a line; errors of other code stay what they are."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from study.config.mistakes import as_study_errors
from study.errors import StudyError


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(ZeroDivisionError), as_study_errors():
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), as_study_errors():
        open("/nowhere/at/all").close()  # raised by the standard library, called from here


def test_an_error_of_omegaconf_becomes_a_line() -> None:
    with pytest.raises(StudyError, match="not a supported primitive type"), as_study_errors():
        OmegaConf.create({"a": object()})
    with pytest.raises(StudyError, match="not valid YAML: while parsing"), as_study_errors():
        OmegaConf.create("a: [")  # an error of YAML's parser


def test_a_users_mistake_passes_through() -> None:
    with pytest.raises(StudyError, match=r"^rank=0$"), as_study_errors():
        raise StudyError("rank=0")


def test_help_whose_reader_has_enough_says_nothing() -> None:
    code = "import sys; from study import cli; sys.argv[1:] = ['train', '--help']; cli.main()"
    reader, writer = os.pipe()
    os.close(reader)  # as head does after its lines
    ran = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=-1, check=False)
    os.close(writer)
    assert ran.stderr == b""
