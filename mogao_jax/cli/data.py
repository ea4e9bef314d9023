"""`mogao data`: look at, check and convert data."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

import numpy as np

from mogao_jax.config import parse_config_args
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.flags import CONFIG_HELP, Parser
from mogao_jax.errors import ConfigError, DocumentError
from mogao_jax.registry import DATA_ACTIONS
from mogao_jax.sequence.batch import Sizes
from mogao_jax.sequence.packing import FIELDS, budgets, exceeds
from mogao_jax.tokenizer import load_tokenizer

USAGE = """usage: mogao data ACTION ...

  inspect  --config=FILE [--num N]     documents as the model sees them, token by token
  fill     --config=FILE [--rows N]    how full rows are, and how fast the pipeline is
  budgets  --config=FILE [--num N] [--und-tokens N]
                                       packing budgets in proportion to the mixture
  tfds     --documents PATH --out DIR  documents -> a tfds data set (array_record)
  tokenizer  --documents PATH... --out FILE [--vocab N]
                                       a byte-level BPE of one's own documents, to train with
                                       --config.tokenizer.kind=file --config.tokenizer.path=FILE
  encode   --config=FILE --out DIR [--dtype float16]
                                       every image through the frozen encoders once, to train
                                       with --config.data.encoded=DIR
{more}

Config fields can be set as in training: --config.packing.und_tokens=2048"""


def usage() -> str:
    """The help text, with the actions that worlds bring."""
    actions = [(name, DATA_ACTIONS.get(name)) for name in DATA_ACTIONS.names()]
    lines = [f"  {name:<7}  {a.usage}\n{'':39}{a.help}" for name, a in actions]
    return USAGE.format(more="\n".join(lines))


def main(argv: list[str]) -> int:
    """Dispatches on the action. Raises MogaoError for what the user can mend."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in action_names():
        raise ConfigError(f"there is no action {argv[0]!r} of 'mogao data'.\n{usage()}")
    run = _OWN.get(argv[0]) or DATA_ACTIONS.get(argv[0]).run
    run(argv[1:])
    return 0


def action_names() -> tuple[str, ...]:
    """The core's, then those that worlds bring."""
    return (*_OWN, *DATA_ACTIONS.names())


def _parser(action: str, **flags: tuple) -> Parser:
    """A parser of flags name=(type, default, help); a default of None makes one required."""
    parser = Parser(prog=f"mogao data {action}", allow_abbrev=False)
    for name, (kind, default, text) in flags.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, required=default is None, help=text)
    return parser


def _with_config(
    action: str, argv: list[str], **flags: tuple
) -> tuple[MogaoConfig, argparse.Namespace]:
    config, rest = parse_config_args(argv)
    parser = _parser(action, **flags)
    parser.add_argument_group("the config", CONFIG_HELP)
    return config, parser.parse_args(rest)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _float_dtype(text: str) -> str:
    if text not in ("float32", "float16"):
        raise argparse.ArgumentTypeError(f"must be float32 or float16, got {text!r}")
    return text


# Imports of the pipeline stand in the actions: grain and the sources take a second to load.


def _inspect(argv: list[str]) -> None:
    config, flags = _with_config("inspect", argv, num=(_positive, 6, "documents to show"))
    from mogao_jax.data.inspecting import describe
    from mogao_jax.data.preparing import make_preparer

    tokenizer = load_tokenizer(config.tokenizer)
    preparer = make_preparer(config, tokenizer, "train")
    draws = preparer.draws()
    for number in range(flags.num):
        draw = draws[number]
        print(f"--- {preparer.names[draw.source]}, record {draw.record}")
        try:
            document = preparer.document(draw)
            laid_out = preparer.lay_out(document, draw)
        except DocumentError as e:
            print(f"cannot be used: {e}\n")
            continue
        print(f"id {document.id!r}")
        print(describe(laid_out, tokenizer), end="\n\n")


def _table(rows: list[tuple]) -> str:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    first, *others = (max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True))
    form = "  ".join([f"{{!s:<{first}}}", *(f"{{!s:>{width}}}" for width in others)])
    return "\n".join(form.format(*row) for row in rows)


def _fill(argv: list[str]) -> None:
    config, flags = _with_config("fill", argv, rows=(_positive, 200, "rows to pack"))
    from mogao_jax.data.inspecting import measure_fill

    report = measure_fill(config, load_tokenizer(config.tokenizer), flags.rows)
    limits = budgets(config.packing)._asdict()
    limits["gen"] = limits["clean"] + limits["noised"]
    names = ["und", "gen", "clean", "noised", "images", "vit_patches"]
    used = [(n, limits[n], f"{100 * report.shares[n]:.1f}%") for n in names]
    print(_table([("budget", "of a row", "used"), *used]))
    per_row = report.documents / report.rows
    print(f"\n{report.rows} rows, {report.documents} documents ({per_row:.1f} a row)")
    print(
        f"{report.documents / report.seconds:,.0f} documents/s, "
        f"{report.tokens / report.seconds:,.0f} tokens/s without padding (one process)"
    )
    print(f"skipped: {report.num_broken} broken, {report.num_over_long} over-long")


def _budgets(argv: list[str]) -> None:
    config, flags = _with_config(
        "budgets",
        argv,
        num=(_positive, 2000, "documents to measure"),
        und_tokens=(int, 0, "wanted size of the und stream (default: the config's)"),
    )
    from mogao_jax.data.inspecting import measure_sizes, suggest_budgets
    from mogao_jax.data.preparing import make_preparer

    preparer = make_preparer(config, load_tokenizer(config.tokenizer), "train")
    found = measure_sizes(preparer, flags.num)
    everything = np.concatenate(list(found.values()))
    rows: list[tuple] = [("mean size of documents", "number", *Sizes._fields)]
    for name, values in found.items():
        rows.append((name, len(values), *(f"{x:.1f}" for x in values.mean(axis=0))))
    rows.append(("all", len(everything), *(f"{x:.1f}" for x in everything.mean(axis=0))))
    rows.append(("largest", "", *everything.max(axis=0)))
    print(_table(rows))
    limits = budgets(config.packing)
    over = sum(exceeds(Sizes(*map(int, row)), limits) is not None for row in everything)
    if over:
        print(f"\n{over} of {len(everything)} documents are over the config's budgets.")
    suggested = suggest_budgets(found, flags.und_tokens or config.packing.und_tokens)
    print("\nIn proportion to this mixture, with room for the largest document:")
    for name, value in suggested._asdict().items():
        print(f"  c.packing.{FIELDS[name]} = {value}")


def _tfds(argv: list[str]) -> None:
    documents = str, None, "a JSONL file, or a folder of documents"
    out = str, None, "folder that the data set is written below"
    flags = _parser("tfds", documents=documents, out=out).parse_args(argv)
    try:
        from mogao_jax.data.tfds_builder import prepare
    except ImportError:
        raise ConfigError("'mogao data tfds' needs: pip install \"mogao_jax[tfds]\"") from None
    print(f"Written: {prepare(flags.documents, flags.out)}")


def _tokenizer(argv: list[str]) -> None:
    parser = _parser(
        "tokenizer",
        vocab=(_positive, 2048, "number of tokens, at most (2048)"),
        out=(str, None, "the tokenizer.json to write"),
    )
    parser.add_argument(
        "--documents", nargs="+", required=True, help="JSONL files or folders of documents"
    )
    flags = parser.parse_args(argv)
    from mogao_jax.data.bpe import CHAT_HEADERS, save, texts_of, tokens_per_word, train_bpe
    from mogao_jax.data.sources import DocumentsSource

    texts = [t for path in flags.documents for t in texts_of(DocumentsSource(path))]
    tokenizer = train_bpe([*texts, *CHAT_HEADERS * max(1, len(texts) // 10)], flags.vocab)
    save(tokenizer, pathlib.Path(flags.out))
    per_word = tokens_per_word(tokenizer, texts[:: max(1, len(texts) // 2000)])
    print(
        f"{flags.out}: {tokenizer.get_vocab_size()} tokens from {len(texts):,} texts, "
        f"{per_word:.2f} tokens per word"
    )


def _encode(argv: list[str]) -> None:
    config, flags = _with_config(
        "encode",
        argv,
        out=(str, None, "the folder to write"),
        dtype=(_float_dtype, "float32", "of the values on disk: float32 or float16"),
    )
    from mogao_jax.models.modules import load_modules
    from mogao_jax.precompute import encode_sources

    modules, encoders = load_modules(config, load_tokenizer(config.tokenizer).vocab_size)
    out = pathlib.Path(flags.out)
    done = encode_sources(modules, encoders, out, dtype=flags.dtype)
    print(
        f"{out}: {done.images:,} images, {done.bytes / 2**20:.1f} MiB; "
        f"{done.skipped} records could not be read"
    )


_OWN: dict[str, Callable[[list[str]], None]] = {
    "inspect": _inspect,
    "fill": _fill,
    "budgets": _budgets,
    "tfds": _tfds,
    "tokenizer": _tokenizer,
    "encode": _encode,
}
