"""`mogao push FOLDER ORG/NAME`: a model that `mogao port to-hf` wrote, onto Hugging Face's Hub."""

from __future__ import annotations

from mogao_jax.checkpoints import hub
from mogao_jax.console.flags import Parser
from mogao_jax.errors import CheckpointError, RequestError
from mogao_jax.paths import expanded


def main(argv: list[str]) -> int:
    """Pushes the folder and prints the address of the model's page."""
    parser = Parser(
        prog="mogao push",
        description="Puts a folder of `mogao port to-hf` onto Hugging Face's Hub, from where "
        "`mogao sample --checkpoint ORG/NAME` and mogao_jax.load take it. Needs "
        'pip install "mogao_jax[hub]" and `hf auth login`.',
    )
    parser.add_argument("folder", help="what `mogao port to-hf CKPT --out FOLDER` wrote")
    parser.add_argument("name", metavar="ORG/NAME", help="of the model on the Hub")
    parser.add_argument("--private", action="store_true", help="only you can see it (when new)")
    parser.add_argument("--message", default="Upload a Mogao model", help="of the commit")
    arguments = parser.parse_args(argv)
    if arguments.name.count("/") != 1:
        raise RequestError(f"the name is {arguments.name!r}; give it as ORG/NAME.")

    from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, is_mogao_folder

    folder = expanded(arguments.folder)
    if not is_mogao_folder(folder):
        raise CheckpointError(
            f"{arguments.folder!r} is no folder of a whole Mogao model; make one with `mogao port "
            "to-hf CKPT --out FOLDER`."
        )
    MogaoCheckpoint(folder)  # every shard is there and can be read
    print(hub.push(folder, arguments.name, private=arguments.private, message=arguments.message))
    return 0
