"""Options made from the fields of settings: each has one owner of its default."""

import dataclasses

import pytest

from dsgen.cli.corpus_commands import COMPOSITE, PARAMETERS_HELP
from dsgen.cli.settings_options import FieldsOf
from dsgen.cli.training_commands import SETTINGS_DEFAULTS, SETTINGS_HELP, TRAIN
from dsgen.corpus.build import Parameters
from dsgen.training.settings import Settings

from .conftest import Run, Stages


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        (FieldsOf("dsgen.training.settings:Settings", SETTINGS_HELP, SETTINGS_DEFAULTS), TRAIN),
        (FieldsOf("dsgen.corpus.build:Parameters", PARAMETERS_HELP), COMPOSITE),
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
    assert fields.take(values) == settings(**fields.defaults)
    assert values == {}


def test_only_the_samples_of_an_epoch_have_another_default_on_the_command_line(run: Run, stages: Stages):
    """A run without options is to end tonight."""
    assert run("train").code == 0
    assert stages.only()[0][2] == Settings(epoch_samples=20_000)
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


def test_help_prefers_what_the_field_says():
    """The command's own table is only for fields without a text; where a field may be None, it is said how."""
    fields = FieldsOf(f"{__name__}:Toy", {"a": "From the table.", "b": "From the table."})
    texts = {each.name: each.annotation.__metadata__[0].help for each in fields.parameters()}
    assert texts == {
        "a": "From the field.",
        "b": "From the table; not set by default.",
        "c": "From the field; 0 for no limit.",
    }


@dataclasses.dataclass(frozen=True)
class Toy:
    """Settings of a test."""

    a: int = dataclasses.field(default=1, metadata={"help": "From the field."})
    b: float | None = None
    c: int | None = dataclasses.field(default=5, metadata={"help": "From the field."})
