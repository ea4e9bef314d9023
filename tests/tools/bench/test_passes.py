"""Both ways train the same images on the same history; only one reads it several times."""

import numpy as np
import pytest

from mogao_jax.cli.main import main
from mogao_jax.tools.bench import passes
from mogao_jax.tools.bench.packed_documents import Setting, num_tokens

SMALL = Setting(layers=1, width=32, mlp=32, heads=2, kv_heads=1, rows=1)


def test_every_image_is_noised_once_either_way():
    whole, single = passes.batches(3, SMALL)
    assert len(single) == 3
    assert whole.noised.meta.segment.shape[1] == 3 * 64
    for k, batch in enumerate(single):
        assert batch.noised.meta.segment.shape[1] == 64
        assert batch.clean.meta.segment.shape[1] == k * 64
        # Each image is trained on the same text and the same images.
        length = batch.und.tokens.shape[1]
        np.testing.assert_array_equal(batch.und.tokens, whole.und.tokens[:, :length])
        np.testing.assert_array_equal(
            batch.noised.positions, whole.noised.positions[:, 64 * k : 64 * (k + 1)]
        )
    assert sum(map(num_tokens, single)) > num_tokens(whole)


def test_compared():
    found = passes.compare(2, 1, SMALL)
    # By hand: histories of 0 and 1 images against one of 1, each with a noised image or two.
    assert 1.0 < found.flops < 2.0 and found.seconds > 0


def test_bad_rounds(capsys):
    assert main(["bench", "passes", "--rounds", "0"]) == 2
    assert "--rounds must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["peers", "passes"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", name, "--help"])
    assert stopped.value.code == 0 and "forward and backward" in capsys.readouterr().out
