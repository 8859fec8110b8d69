"""Options made from the fields of settings: each has one owner of its default."""

import dataclasses

import pytest

from dsgen.cli.corpus_commands import COMPOSITE
from dsgen.cli.settings_options import FieldsOf
from dsgen.cli.training_commands import TRAIN
from dsgen.corpus.build import Parameters
from dsgen.training.settings import Settings

from .conftest import Run, Stages


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        (FieldsOf("dsgen.training.settings:Settings"), TRAIN),
        (FieldsOf("dsgen.corpus.build:Parameters"), COMPOSITE),
    ],
    ids=["train", "composite"],
)
def test_every_field_is_an_option(fields: FieldsOf, command: object):
    """With help, and with its default, which makes the same settings again."""
    settings = fields.load()
    options = {option.name: option for option in command.build().params}  # type: ignore[attr-defined]
    values = {}
    for each in dataclasses.fields(settings):
        assert options[each.name].help, each.name
        assert f"--{each.name.replace('_', '-')}" in options[each.name].opts
        values[each.name] = options[each.name].default
    assert fields.take(values) == settings()
    assert values == {}


def test_the_defaults_are_those_of_the_library(run: Run, stages: Stages):
    """Without options the command line passes the dataclass as it is."""
    assert run("train").code == 0
    assert stages.only()[0][2] == Settings()
    stages.calls.clear()
    assert run("composite").code == 0
    assert stages.only()[0][3] == Parameters()


def test_values_are_passed_on(run: Run, stages: Stages):
    """Lists, switches both ways, and 0 where it stands for all."""
    done = run(
        *("train", "--sizes", "32,64", "--batch-size", "16,8", "--no-average", "--compile", "--clip", "1.5"),
        *("--epoch-samples", 0, "--validation-samples", 0, "--early-stop", 3, "--encoder", "resnet10t", "--seed", 0),
    )
    assert done.code == 0, done.err
    assert stages.only()[0][2] == Settings(
        sizes=(32, 64),
        batch_size=(16, 8),
        average=False,
        compile=True,
        clip=1.5,
        epoch_samples=None,
        validation_samples=None,
        early_stop=3,
        encoder="resnet10t",
    )


def test_help_is_what_the_field_says():
    """Where a field may be None, it is said how."""
    fields = FieldsOf(f"{__name__}:Toy")
    texts = {each.name: each.annotation.__metadata__[0].help for each in fields.parameters()}
    assert texts == {
        "a": "From the field.",
        "b": "From the field; not set by default.",
        "c": "From the field; 0 for no limit.",
    }


@dataclasses.dataclass(frozen=True)
class Toy:
    """Settings of a test."""

    a: int = dataclasses.field(default=1, metadata={"help": "From the field."})
    b: float | None = dataclasses.field(default=None, metadata={"help": "From the field."})
    c: int | None = dataclasses.field(default=5, metadata={"help": "From the field."})
