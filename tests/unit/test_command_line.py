"""What `gatekeeper` answers to what it does not know: one line, by the command it was given to, with the nearest."""

import pytest

from service.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve", "--prot", "1"], "gatekeeper serve: unknown option '--prot': do you mean --port?"),
        (
            ["serve", "--remote-ulr=http://x"],
            "gatekeeper serve: unknown option '--remote-ulr': do you mean --remote-url?",
        ),
        (["tune", "--dta", "x"], "gatekeeper tune: unknown option '--dta': do you mean --data?"),
        (["keys", "list", "--flie", "x"], "gatekeeper keys list: unknown option '--flie': do you mean --file?"),
        (["keys", "new", "a", "b"], "gatekeeper keys new: unknown argument 'b'"),
        (["demo", "-x"], "gatekeeper demo: unknown option '-x'"),
        (["keys", "nwe"], "gatekeeper keys: argument ACTION: 'nwe' is none of them: do you mean new?"),
        (["serv"], "gatekeeper: argument COMMAND: 'serv' is none of them: do you mean serve?"),
        (
            ["serve", "--\N{SNOWMAN}" + 1000 * "x"],
            "gatekeeper serve: unknown option '--\N{SNOWMAN}" + 197 * "x" + "...'",
        ),
        ([], "gatekeeper: the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_word_is_told_by_its_own_command(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert last == line
    assert usage[0].startswith(f"usage: {line.partition(': ')[0]} ")
    assert len(usage) <= 6


def test_the_version_names_python_and_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    words = capsys.readouterr().out.split()
    assert words[::2] == ["gatekeeper", "Python", "torch"]
