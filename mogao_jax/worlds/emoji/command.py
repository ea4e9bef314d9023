"""`mogao data emoji`: the archive of Noto emoji becomes documents."""

from __future__ import annotations

from mogao_jax.console.flags import Parser
from mogao_jax.worlds.emoji.documents import convert


def main(argv: list[str]) -> None:
    """Raises MogaoError for what the user can mend."""
    parser = Parser(prog="mogao data emoji", allow_abbrev=False)
    add = parser.add_argument
    add("--zip", required=True, help="the archive of Noto emoji (index.jsonl and images/)")
    add("--out", required=True, help="folder to write")
    add("--count", type=int, default=0, help="how many emoji, evenly over the archive; 0: all")
    flags = parser.parse_args(argv)
    for name, count in convert(flags.zip, flags.out, flags.count).items():
        print(f"{flags.out}/{name}: {count} documents")
