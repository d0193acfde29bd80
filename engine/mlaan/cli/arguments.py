"""From the words of a command line to the command that runs, its own options, and overrides of settings."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from mlaan import __version__
from mlaan.errors import UserError

Overrides = list[tuple[str, str]]
Command = Callable[[argparse.Namespace, Overrides], int]

OVERVIEW = """\
Trains networks in local modules, each by losses of its own, with exact gradients.

start here
  mlaan train                          the default: a small ResNet by MLAAN on handwritten digits
  mlaan train --help                   every setting, with its default
  mlaan doctor                         what is installed, what is missing, how to get it
"""

TRAIN = """\
examples
  mlaan train                                          the default run, half a minute on two cores
  mlaan train --method.preset light --train.epochs 5   other settings
  mlaan train --config configs/quick/fashion_mnist.toml --data.batch 256
  mlaan train --config RUN/config.toml                 the run in the folder RUN, once more
  mlaan train --resume RUN                             goes on where RUN was stopped or killed
  mlaan train --resume RUN --train.epochs 40           and trains longer; a cosine rate follows the new length

Settings come from the defaults, then the file, then the command line: --key VALUE or --key=VALUE.
--resume takes the run's own settings; only train.epochs, run.*, and where data lie and how they are read may change.
"""

EVAL = """\
examples
  mlaan eval RUN                       the last weights of a run on its test images
  mlaan eval RUN/best.pt               those with the best test accuracy
  mlaan eval RUN --data.batch 500      with other data.* settings, or another train.device
"""

PLAN = """\
examples
  mlaan plan                           what a step of the default run does, module by module
  mlaan plan --partition.modules 8 --method.preset light
  mlaan plan --config RUN/config.toml --json
  mlaan plan --explain                 and what holds the memory when the most is held
  mlaan plan --machine h100 --timeline plan.png                 a picture of the step, as that machine would run it
  mlaan plan --model.name resnet101 --data.name synthetic --data.size 224 --data.classes 1000 --data.batch 256 \\
      --memory 12GiB --machine h100 --out plan.toml             the fastest settings that fit, as a file for train

It takes the settings of `mlaan train`. With --memory it chooses partition.modules, partition.cuts, memory.* and
data.batch; those that you set yourself stay.
"""

EXPORT = """\
examples
  mlaan export RUN                     the last weights: RUN/export/model.safetensors and model.pt2
  mlaan export RUN/best.pt --out best  those with the best test accuracy, into the folder best
  mlaan export RUN --format program    only the torch.export program, which runs without mlaan

Auxiliary heads are left out. Both files are read again, and their logits compared with the trained network's.
"""

REPORT = """\
example
  mlaan report RUN                     prints the table again and draws RUN/report.png anew
"""

TABLE = """\
examples
  mlaan table configs/paper/cifar10/resnet32_k8_*.toml        a published table's rows, with three seeds each
  mlaan table configs/paper/svhn --seeds 0 --train.epochs 2 --optim.warmup_epochs 0 --folder runs/look   a quick look
  mlaan table configs/paper/svhn --only-print                 what there is so far; --json for a program

Each config with each seed is a run, FOLDER/<config>-seed<N>. Interrupted (Ctrl-C, a kill, a power cut), the same
command goes on: finished runs are kept, stopped ones resumed to the same bits, missing ones started. Other settings
than those of the files are written as for `mlaan train`, need a --folder of their own and leave out what is published.
"""

PROBE = """\
examples
  mlaan probe RUN                      how far a linear classifier gets on each module's output, and the modules' CKA
  mlaan probe RUN --against RUN2       and the CKA to another run of the same backbone, at the same depths
  mlaan probe RUN RUN2 RUN3            several runs, all where the modules of the first one end
  mlaan probe RUN --images 2000        with fewer training images; --data.root and --train.device as for eval

The last weights, in evaluation mode; a feature is the mean of a channel over pixels or tokens. Writes RUN/probe.json
and RUN/probe.png.
"""

COMPARE = """\
examples
  mlaan compare --model.name resnet18 --data.name synthetic --data.size 64 --data.batch 32
  mlaan compare --config RUN/config.toml --modules 2,4,8,16      the model and batch of a run
  mlaan compare --methods dgl,infopro,mlaan --rounds 9

Training steps of end-to-end, checkpointed end-to-end and local learning, interleaved on this machine with random
images: time, memory and a picture of both. It takes the settings of `mlaan train`.
"""

PROFILE = """\
examples
  mlaan profile                        some steps of the default run, task by task: table, picture and trace
  mlaan profile --config RUN/config.toml --steps 5 --out profile

Random images in place of data. Writes profile.png (lanes over time, memory below), trace.json (for chrome://tracing or
ui.perfetto.dev) and profile.json. It takes the settings of `mlaan train`.
"""

DATA = """\
examples
  mlaan data check DIR                 decodes every image once; training then leaves out the bad ones
  mlaan data pack DIR OUT              writes small images into a few large files, which are read faster
"""

DATA_CHECK = """\
examples
  mlaan data check ~/imagenet                  names what is empty, truncated, no image or tiny
  mlaan data check ~/imagenet --json           all of it, for a program

DIR holds train/ and val/, each with a folder per class. The list is kept in DIR/train/.mlaan-check.npz, DIR/val/...
(or in ~/.cache/mlaan, where DIR cannot be written); training uses it and says how many files it left out. A second call
looks only at files that are new or have changed. Grey and CMYK images are named, and used as RGB.
"""

DATA_PACK = """\
examples
  mlaan data pack ~/imagenet ~/packed                  JPEG, at most 256 pixels on the shorter side
  mlaan data pack ~/imagenet ~/packed --format uint8   raw pixels: several times larger, fastest to read
  mlaan train --data.name imagenet --data.root ~/packed ...

Bad files are left out and named. Interrupted (Ctrl-C, a kill, a full disk), the same command goes on. OUT/train and
OUT/val hold shards with checksums and an index.
"""

REPLAY = """\
examples
  mlaan replay RUN/incidents/epoch-3-step-1204.pt      the step whose numbers were not finite, task by task

A run that meets a NaN or an infinity keeps that step's batch, weights and random state. This runs it again and names
the first layer and the first gradient that are not finite. run.on_nan decides how the run itself goes on.
"""

DOCTOR = """\
examples
  mlaan doctor                         prints versions, packages, kernels and libraries; exit status 0
  mlaan doctor --measure               also measures this machine, for the times that `mlaan plan` predicts
"""


MACHINE = "whose times to predict: h100, a100, rtx4090, cpu, or a file that `mlaan doctor --measure` wrote"
_WITH_SETTINGS = ("train", "plan", "compare", "profile")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`")


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace, Overrides]:
    """Splits a command line into the command's function, its options, and (key, text) overrides of settings.

    Exits with status 0 after --help.

    Raises:
        UserError: an unknown command or option, or one without its value.
    """
    words, overrides = _split(argv)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(_unknown(unknown[0], arguments.command))
    if arguments.command is None:
        parser.print_help()
        raise SystemExit(0)
    if arguments.command in _WITH_SETTINGS and arguments.help:
        from mlaan.cli.help import settings

        print(arguments.parser.format_help())
        print(settings())
        raise SystemExit(0)
    if arguments.module == "data_help":
        print(arguments.parser.format_help())
        raise SystemExit(0)
    if overrides and arguments.command in ("report", "doctor", "data"):
        raise UserError(f"`mlaan {arguments.command}` takes no settings: leave out --{overrides[0][0]}")
    return import_module(f"mlaan.cli.{arguments.module}").run, arguments, overrides


def _split(argv: Sequence[str]) -> tuple[list[str], Overrides]:
    words: list[str] = []
    overrides: Overrides = []
    rest = iter(argv)
    for word in rest:
        key, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and key in ("model", "data", "method"):
            key += ".name"
        if not word.startswith("--") or "." not in key:
            words.append(word)
            continue
        if not equals:
            value = next(rest, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{key} has no value: write --{key} VALUE, or --{key}=VALUE")
            text = value
        overrides.append((key, text))
    return words, overrides


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("mlaan", description=OVERVIEW, formatter_class=raw, allow_abbrev=False)
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"mlaan {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def add(name: str, what: str, examples: str, module: str = "") -> argparse.ArgumentParser:
        own_help = name in _WITH_SETTINGS  # they go on with the list of settings
        command = commands.add_parser(
            name,
            help=what,
            description=f"{what}\n\n{examples}",
            formatter_class=raw,
            allow_abbrev=False,
            add_help=not own_help,
        )
        command.set_defaults(module=module or name, parser=command)
        if own_help:
            command.add_argument("-h", "--help", action="store_true", help="show this help and every setting")
            command.add_argument("--config", metavar="FILE", help="a TOML file of settings")
        return command

    train = add("train", "Trains a network and writes a run folder.", TRAIN)
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    evaluate = add("eval", "Tests the weights of a run or a checkpoint.", EVAL, "evaluate")
    evaluate.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run folder (its last.pt) or a .pt file")
    export = add("export", "Writes the trained backbone alone, as weights and as a program.", EXPORT)
    export.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run folder (its last.pt) or a .pt file")
    export.add_argument("--out", metavar="DIR", help="where to (default: export, beside the checkpoint)")
    export.add_argument("--format", choices=("safetensors", "program", "both"), default="both", help="(default: both)")
    plan = add("plan", "Prints the work, memory and parameters of a training step.", PLAN)
    plan.add_argument("--json", action="store_true", help="print JSON in place of tables")
    plan.add_argument("--machine", metavar="NAME", default="", help=MACHINE)
    plan.add_argument("--explain", action="store_true", help="tell what holds the memory at its peak")
    plan.add_argument("--timeline", metavar="FILE", help="draw the step as that machine would run it")
    plan.add_argument("--memory", metavar="SIZE", help="look for the fastest settings that fit, such as 12GiB")
    plan.add_argument("--out", metavar="FILE", help="with --memory: where the settings go (default: plan.toml)")
    add("report", "Prints a run's results and draws its picture anew.", REPORT).add_argument(
        "path", metavar="RUN", help="a run folder"
    )
    probe = add("probe", "Tells what is known after each module of trained runs.", PROBE)
    probe.add_argument("paths", metavar="RUN", nargs="+", help="run folders, of one backbone")
    probe.add_argument("--against", metavar="RUN", help="the run to compare with, such as end-to-end's")
    probe.add_argument("--images", metavar="N", type=int, default=10_000, help="training images (default: 10000)")
    table = add("table", "Trains configs with several seeds and prints ours beside the published.", TABLE)
    table.add_argument("files", metavar="FILE", nargs="+", help="a config, or a folder: all the configs in it")
    table.add_argument("--seeds", metavar="N,N", default="0,1,2", help="values of train.seed (default: 0,1,2)")
    table.add_argument("--folder", help="where the runs go (default: runs/table/<folder of the configs>)")
    table.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    table.add_argument("--only-print", action="store_true", help="train nothing")
    table.add_argument("--json", action="store_true", help="print JSON in place of the table")
    compare = add("compare", "Measures local learning beside end-to-end on your model and machine.", COMPARE)
    compare.add_argument("--modules", metavar="K,K", default="2,4,8", help="numbers of modules (default: 2,4,8)")
    compare.add_argument("--methods", metavar="NAME,NAME", default="dgl,mlaan", help="(default: dgl,mlaan)")
    compare.add_argument("--rounds", metavar="N", type=int, default=5, help="measured rounds (default: 5)")
    compare.add_argument("--out", metavar="FOLDER", help="(default: runs/compare-<time>)")
    compare.add_argument("--json", action="store_true", help="print JSON in place of the table")
    profile = add("profile", "Measures where a step's time and memory go, task by task.", PROFILE)
    profile.add_argument("--steps", metavar="N", type=int, default=3, help="steps that are recorded (default: 3)")
    profile.add_argument("--out", metavar="FOLDER", help="(default: runs/profile-<time>)")
    replay = add("replay", "Runs the step again in which a run's numbers stopped being finite.", REPLAY)
    replay.add_argument("path", metavar="FILE", help="a file in a run's folder incidents")
    _add_data(commands, raw)
    doctor = add("doctor", "Tells what is installed, active and missing.", DOCTOR)
    doctor.add_argument("--measure", action="store_true", help="measure this machine's arithmetic and memory")
    return parser


def _add_data(commands: "argparse._SubParsersAction[_Parser]", raw: type) -> None:
    """`mlaan data`, which has commands of its own."""
    what = "Checks a folder of images, or packs it."
    data = commands.add_parser(
        "data", help=what, description=f"{what}\n\n{DATA}", formatter_class=raw, allow_abbrev=False
    )
    data.set_defaults(module="data_help", parser=data)
    kinds = data.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, what: str, examples: str) -> argparse.ArgumentParser:
        command = kinds.add_parser(
            name, help=what, description=f"{what}\n\n{examples}", formatter_class=raw, allow_abbrev=False
        )
        command.set_defaults(module=f"data_{name}", parser=command)
        command.add_argument(
            "--workers", metavar="N", type=_positive, help="processes (default: one for each processor)"
        )
        return command

    check = add("check", "Looks at every file of a folder of images and keeps a list of the good ones.", DATA_CHECK)
    check.add_argument("folder", metavar="DIR", help="the folder that holds train and val")
    check.add_argument("--json", action="store_true", help="print JSON in place of the table")
    pack = add("pack", "Writes a folder of images as a few large files of small images.", DATA_PACK)
    pack.add_argument("folder", metavar="DIR", help="the folder that holds train and val")
    pack.add_argument("out", metavar="OUT", help="the new folder")
    pack.add_argument(
        "--size",
        metavar="N",
        type=_positive,
        default=256,
        help="pixels that the shorter side is reduced to; smaller images stay (default: 256)",
    )
    pack.add_argument("--format", choices=("jpeg", "uint8"), default="jpeg", help="(default: jpeg)")
    pack.add_argument("--quality", metavar="N", type=_positive, default=90, help="of the JPEGs (default: 90)")
    pack.add_argument("--shard-mb", metavar="N", type=_positive, default=256, help="size of a file (default: 256)")


def _positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _unknown(word: str, command: str | None) -> str:
    """What to say about a word that no command knows."""
    name = word.partition("=")[0]
    if command in (*_WITH_SETTINGS, "eval", "table", "probe") and name.startswith("--"):
        from mlaan.cli.settings import keys

        known = keys()
        same_end = [key for key in known if key.split(".")[-1] == name[2:].replace("-", "_")]
        close = same_end or difflib.get_close_matches(name[2:], known, n=1, cutoff=0.4)
        if close:
            return f"unknown option {name!r}: did you mean '--{close[0]}'?"
    return f"unknown argument {name!r}: see `mlaan{f' {command}' if command else ''} --help`"
