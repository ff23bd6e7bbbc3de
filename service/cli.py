"""The `gatekeeper` command. The offline commands come from models.commands; torch is loaded only by what needs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from models.commands.registry import add_commands
from models.errors import InputError
from models.printing import discard_output, finish_output, prepare_output, printable
from service.access.keys import ApiKeys
from service.commands.command_line import Parser, Version
from service.commands.keys import add_key_commands
from service.errors import StartupError
from service.settings import PACKAGED_BUNDLES, EdgeSettings, LargeSettings, setting_names, variable_of
from service.variables import remarks

Settings = TypeVar("Settings", EdgeSettings, LargeSettings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every expected failure is one line on stderr and exit code 2."""
    prepare_output()
    try:
        try:
            arguments = _parser().parse_args(argv)
            for line in remarks(os.environ, setting_names()):
                print(f"gatekeeper: {printable(line)}", file=sys.stderr)
            return int(arguments.run(arguments))
        finally:  # also after --help, which ends the process
            finish_output()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gatekeeper evaluate | head`
        discard_output()
        return 141
    except Exception as error:
        why = _expected(error)
        if why is None:
            raise
    print(f"gatekeeper: {printable(why)}", file=sys.stderr)
    return 2


def _expected(error: Exception) -> str | None:
    """What to say of a failure that is the input's or the machine's; None: it is a fault of ours."""
    if isinstance(error, InputError | StartupError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _extra_with((error.name or "").partition(".")[0])
        return extra and f"this needs {error.name}: from the checkout, pip install -e '.[{extra}]'"
    if isinstance(error, OSError):  # a folder that is closed to us, a full disk
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
    return "there is not enough memory for this" if isinstance(error, MemoryError) else None


def _extra_with(module: str) -> str | None:
    """The extra of pyproject.toml that brings a module; None if none does, and its absence is a fault of ours."""
    job = {"transformers", "scipy", "sklearn", "matplotlib", "jinja2", "markupsafe", "tqdm"}
    tune = {"accelerate", "datasets", "gguf", "peft", "tensorboard"}
    return "job" if module in job else "tune" if module in tune else None


def _parser() -> argparse.ArgumentParser:
    parser = Parser("gatekeeper", description="Model cascades with a tuned, calibrated gate.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the versions of gatekeeper, Python and torch")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the edge: the small model, the gate and the way to the large model")
    _add_listener(serve, "GATEKEEPER_", "8000")
    serve.add_argument("--remote-url", help="the large model (GATEKEEPER_REMOTE_URL; default http://127.0.0.1:8001)")
    serve.set_defaults(run=run_serve)

    large = commands.add_parser("serve-large", help="run a large model as a service of its own")
    _add_listener(large, "GATEKEEPER_LARGE_", "8001")
    large.set_defaults(run=run_serve_large)

    up = commands.add_parser(
        "up", help="run the edge and its large model on this machine, with a generated admin token"
    )
    up.add_argument("--port", type=int, default=None, help="the edge's port; default 8000")
    up.add_argument("--large-port", type=int, default=None, help="the large model's port; default 8001")
    up.set_defaults(run=run_up)

    demo = commands.add_parser("demo", help="send a few dozen sentences to a running edge and show who answers each")
    demo.add_argument("--url", default="http://127.0.0.1:8000", help="the edge; default %(default)s")
    demo.add_argument(
        "--data",
        metavar="D",
        help="your own examples, if the edge serves your own bundle: a .csv, .jsonl or .parquet file with texts and "
        "labels, or a folder of images by class",
    )
    demo.add_argument("--text-column", default="text", metavar="NAME", help="of --data; default: %(default)s")
    demo.add_argument("--label-column", default="label", metavar="NAME", help="of --data; default: %(default)s")
    demo.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="the API key, if the edge asks for one; with the scope override the demo shows other thresholds too; "
        "default: GATEKEEPER_API_KEY",
    )
    demo.set_defaults(run=run_demo)

    stand_in = commands.add_parser(
        "stand-in", help="serve a bundle over the OpenAI wire, in the place of an LLM, to try"
    )
    stand_in.add_argument(
        "--bundle",
        type=Path,
        default=PACKAGED_BUNDLES / "clinc150-large",
        help="what answers; default: the packaged one",
    )
    stand_in.add_argument("--model", default="stand-in", metavar="NAME", help="what it is called; default: %(default)s")
    stand_in.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    stand_in.add_argument("--port", type=int, default=8002, help="port to listen on; default: %(default)s")
    stand_in.set_defaults(run=run_stand_in)

    add_key_commands(commands)
    add_commands(commands)
    return parser


def _add_listener(parser: argparse.ArgumentParser, prefix: str, port: str) -> None:
    parser.add_argument(
        "--bundle", type=Path, help=f"directory of the model's bundle ({prefix}BUNDLE; default: the packaged one)"
    )
    parser.add_argument("--host", help=f"address to listen on ({prefix}HOST; default 127.0.0.1)")
    parser.add_argument("--port", type=int, help=f"port to listen on ({prefix}PORT; default {port}; 0: any free one)")


def run_serve(arguments: argparse.Namespace) -> int:
    """`gatekeeper serve`."""
    settings = _settings(EdgeSettings, arguments, ("bundle", "host", "port", "remote_url"))
    from models.bundle import load_bundle
    from service.server.run import bind, run
    from service.telemetry.logs import configure_logs

    configure_logs(settings, "edge")
    _check_access(settings, "GATEKEEPER_API_KEYS")
    sockets = [bind(settings.host, settings.port)]
    admin_port = None
    if settings.admin_port is not None:
        sockets.append(bind(settings.host, settings.admin_port))
        admin_port = sockets[1].getsockname()[1]
    load_bundle(settings.bundle)  # again at the end of the start; a damaged one is told before torch is loaded
    _prepare_libraries()
    from service.app import create_app

    run(create_app(settings, admin_port=admin_port), settings, sockets)
    return 0


def run_serve_large(arguments: argparse.Namespace) -> int:
    """`gatekeeper serve-large`."""
    settings = _settings(LargeSettings, arguments, ("bundle", "host", "port"))
    from models.bundle import load_bundle
    from service.server.run import bind, run
    from service.telemetry.logs import configure_logs

    configure_logs(settings, "large")
    _check_access(settings, "GATEKEEPER_LARGE_API_KEYS")
    sockets = [bind(settings.host, settings.port)]
    load_bundle(settings.bundle)
    _prepare_libraries()
    from service.app import create_large_app

    run(create_large_app(settings), settings, sockets)
    return 0


def run_up(arguments: argparse.Namespace) -> int:
    """`gatekeeper up`, which `make serve` runs."""
    from service.commands.up import run_pair

    return run_pair(
        _settings(EdgeSettings, argparse.Namespace(port=arguments.port), ("port",)),
        _settings(LargeSettings, argparse.Namespace(port=arguments.large_port), ("port",)),
    )


def run_stand_in(arguments: argparse.Namespace) -> int:
    """`gatekeeper stand-in`."""
    _prepare_libraries()
    from service.commands.stand_in import serve

    return serve(arguments.bundle, arguments.model, arguments.host, arguments.port)


def run_demo(arguments: argparse.Namespace) -> int:
    """`gatekeeper demo`."""
    from service.commands.demo import show

    return show(
        arguments.url,
        arguments.data,
        api_key_file=arguments.api_key_file,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
    )


def _settings(kind: type[Settings], arguments: argparse.Namespace, flags: tuple[str, ...]) -> Settings:
    """Flags over variables over defaults. Raises StartupError with the variable's name."""
    fields = {str(kind.model_fields[flag].validation_alias or flag): flag for flag in flags}
    given = {field: getattr(arguments, flag) for field, flag in fields.items() if getattr(arguments, flag) is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if name in given:
            raise StartupError(f"--{fields[name].replace('_', '-')}: {first['msg']}") from None
        raise StartupError(f"{variable_of(name)}: {first['msg']}") from None


def _check_access(settings: EdgeSettings | LargeSettings, variable: str) -> None:
    """They are read again at the end of the start; bad ones are told before torch is loaded. Raises StartupError."""
    if settings.redis_url is not None:
        from service.redis_connection import open_pool

        open_pool(str(settings.redis_url), timeout_s=1.0)  # connects to nothing
    ApiKeys(settings.api_keys, settings.api_keys_file, source=variable, on_names=lambda _: None)


def _prepare_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer runs where the model runs
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


if __name__ == "__main__":
    sys.exit(main())
