"""Peers and ours get the same inputs; the peers' own code is not installed."""

import numpy as np
import pytest

from mogao_jax.cli.main import main
from mogao_jax.sequence.masking import VAE_NOISED
from mogao_jax.tools.bench import packed_documents

SMALL = packed_documents.Setting(
    layers=1, width=32, mlp=32, heads=2, kv_heads=1, documents=2, images=1
)


def test_all_get_the_same_tokens_and_mask():
    batch = packed_documents.make_batch(packed_documents.Setting(documents=2, images=2))
    rows = packed_documents.sequences(batch)
    assert [len(row) for row in rows] == [2, 2]
    assert sum(len(d.is_gen) for row in rows for d in row) == packed_documents.num_tokens(batch)
    for row in rows:
        for document in row:
            # Images of 64 tokens each: one is read again (clean), both are generated (noised).
            gen = document.is_gen
            assert gen.sum() == 3 * 64 and not gen[: -3 * 64].any()
            assert document.mask.diagonal().all()
            und = ~gen
            assert not document.mask[np.ix_(und, gen)].any()  # text reads no VAE tokens
            first, second = document.mask[-128:-64], document.mask[-64:]
            assert not first[:, -192:-128].any() and second[:, -192:-128].all()
            assert first[:, -128:-64].all() and not first[:, -64:].any()
    noised = np.asarray(batch.noised.meta.kind)
    assert (noised == VAE_NOISED).all() and (np.asarray(batch.und.meta.segment) > 0).all()


def test_our_step_runs():
    packed_documents.make_step(SMALL, packed_documents.make_batch(SMALL))()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a peer: --bagel FOLDER, --transfusion, or both"),
        (["--transfusion", "--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--bagel", "nowhere"], "nowhere is no clone of BAGEL"),
        (["--other"], "unrecognized arguments: --other"),
    ],
)
def test_bad_requests(flags, message, capsys):
    assert main(["bench", "peers", *flags]) == 2
    assert message in capsys.readouterr().err
