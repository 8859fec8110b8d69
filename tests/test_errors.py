"""The errors a user can put right: fields, wording, and travel between processes."""

import errno
import pickle

import pytest

from dsgen.errors import (
    BusyError,
    ConflictError,
    DamagedError,
    Difference,
    DsgenError,
    InvalidValueError,
    MissingPackageError,
    NotFoundError,
    SeveralErrors,
    check_rules,
    find_differences,
    is_system_error,
    raise_all,
    reason_of,
    remedy_of,
)

EXAMPLES = [
    DsgenError("cat.png", "no alpha channel", "save it as an RGBA PNG"),
    InvalidValueError.expected("batch_size", (3, 4), "1 or more"),
    NotFoundError("shards", "no store", "run dsgen pack"),
    DamagedError("plan.npy", "cannot be read"),
    BusyError("corpus", "another dsgen is writing here", "wait for it"),
    MissingPackageError("h5py", "not installed", "pip install 'dsgen[keras]'"),
    ConflictError("s", "made with other inputs", "use the same", [Difference("--size", 48, None)], "corpus"),
    SeveralErrors([DamagedError("a", "b", "c"), BusyError("d", "e")]),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: DsgenError):
    """Class, message and fields are the same in the process that started the worker."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.what, again.reason, again.remedy) == (error.what, error.reason, error.remedy)


def test_messages():
    """What, reason, remedy; every difference on a line; every error on a line."""
    assert str(EXAMPLES[0]) == "cat.png: no alpha channel; save it as an RGBA PNG"
    assert str(EXAMPLES[1]) == "--batch-size: got 3,4, expected 1 or more"
    assert str(EXAMPLES[3]) == "plan.npy: cannot be read"
    assert str(EXAMPLES[6]) == "s: made with other inputs; use the same\n  --size 48 (the corpus has none)"
    assert str(EXAMPLES[7]) == "2 problems, nothing was written:\n  a: b; c\n  d: e"


def test_errors_can_be_told_apart_by_python_s_own_classes():
    """Code that knows nothing of dsgen catches a missing file, a wrong value, a missing package."""
    assert isinstance(EXAMPLES[1], ValueError)
    assert isinstance(EXAMPLES[2], FileNotFoundError)
    assert isinstance(EXAMPLES[5], ImportError)
    assert all(isinstance(error, DsgenError) for error in EXAMPLES)


def test_rules_are_all_checked():
    """Nothing is raised where all hold; one error for one rule, all of them for several."""
    check_rules([(True, "size", 1, "1 or more")])
    with pytest.raises(InvalidValueError, match=r"^--size: got 0, expected 1 or more$"):
        check_rules([(False, "size", 0, "1 or more"), (True, "seed", 0, "0 or more")])
    with pytest.raises(SeveralErrors) as caught:
        check_rules([(False, "size", 0, "1 or more"), (False, "seed", -1, "0 or more")])
    assert [error.what for error in caught.value.errors] == ["--size", "--seed"]
    assert all(isinstance(error, InvalidValueError) for error in caught.value.errors)


def test_nothing_is_raised_for_no_errors():
    """An empty list is no error."""
    raise_all([])


def test_differences_cover_both_sides():
    """A name that only one side has differs too."""
    assert find_differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == [Difference("a", 1, None), Difference("c", None, 3)]


def test_the_reason_of_an_error_is_one_line_without_its_path():
    """The system's words for an OSError, the first line of others, the class where there are no words."""
    assert reason_of(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert reason_of(ValueError("a.png is cut\nat byte 3"), "a.png") == "it is cut"
    assert reason_of(KeyError()) == "KeyError"


def test_the_path_is_not_repeated_in_a_reason():
    """With or without quotes."""
    path = "a/room.png"
    for text in ("cannot identify 'a/room.png'", 'cannot identify "a/room.png"', "cannot identify a/room.png"):
        assert reason_of(ValueError(text), path) == "cannot identify it"


def test_an_error_is_one_line_whatever_files_hold():
    """Line ends and escape sequences in names and values are written out."""
    error = DsgenError("a\nb.csv", "got \x1b[2Jx\u2028\x85, expected y", "correct\r it")
    assert str(error) == r"a\nb.csv: got \x1b[2Jx\u2028\x85, expected y; correct\r it"


@pytest.mark.parametrize(
    ("error", "of_system", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True, "raise the limit, for example with ulimit -n"),
        (OSError(errno.EIO, "Input/output error"), True, "check the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), True, "change the permissions"),
        (MemoryError(), True, "close other programs"),
        (FileNotFoundError(errno.ENOENT, "No such file"), False, ""),
        (OSError(errno.EINVAL, "Invalid argument"), False, ""),
        (OSError("file signature not found"), False, ""),
        (ValueError("bad"), False, ""),
    ],
)
def test_errors_of_the_system_are_told_from_those_of_files(error, of_system, remedy):
    """They say nothing of a file's content, and have a remedy of their own."""
    assert is_system_error(error) is of_system
    assert remedy_of(error).startswith(remedy)
    assert of_system or not remedy_of(error)
