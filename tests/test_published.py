"""Published predictions: fetched once and checked, a named copy, a wrong one, and no line at all. Nothing here reaches the internet."""
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import chestnb.evaluation.published as published
from chestnb.core.errors import UserError
from chestnb.data.nih import nih_metadata
from chestnb.evaluation.predictions import write_predictions
from chestnb.evaluation.published import CHEXNET, CHEXNET_FILE, PREDICTIONS_VARIABLE, SIMULATED, published_predictions
from chestnb.evaluation.scores import score_table
from chestnb.evaluation.simulation import simulated_predictions

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import FaultyServer


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    "An empty cache, no named copy, and nothing remembered."
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv(PREDICTIONS_VARIABLE, raising=False)
    for function in (published._file_or_reason, published._published): function.cache_clear()
    yield
    for function in (published._file_or_reason, published._published): function.cache_clear()


@pytest.fixture
def served(monkeypatch, tmp_path):
    "A small file of predictions of real names, served on this machine as if it were the published one."
    table = nih_metadata().iloc[:300]
    content = write_predictions(simulated_predictions(table), tmp_path/'source.csv').read_bytes()
    server = FaultyServer({'preds.csv': content})
    remote = replace(CHEXNET_FILE, url=server.url('preds.csv'), n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(published, 'CHEXNET_FILE', remote)
    yield server, tmp_path/'source.csv'
    server.shutdown()
    server.server_close()


def test_address_names_a_commit_and_the_checksum_is_a_sha256():
    assert '/a011a9ab108cb03a533aeab52dc934b02a823ac8/' in CHEXNET_FILE.url and CHEXNET_FILE.n_bytes == 4_188_340
    assert CHEXNET_FILE.checksum == '303332d593f56dc3c8191f2a903f09043c93f7205179d03189f3eaaf6247ad40'


def test_fetched_once_then_from_the_cache(served, tmp_path, capsys):
    server, _ = served
    server.faults['preds.csv'] = [('drop', 1000)]
    scored = published_predictions()
    assert (scored.name, len(scored)) == (CHEXNET, 300) and 'SIMULATED' not in capsys.readouterr().out
    asked = len(server.requests['preds.csv'])
    published._file_or_reason.cache_clear()
    assert published_predictions().name == CHEXNET and len(server.requests['preds.csv']) == asked == 2
    kept = tmp_path/'cache'/'predictions'/CHEXNET_FILE.name
    kept.write_bytes(kept.read_bytes()[:-1] + b'9')    # damaged behind our back: fetched again
    published._file_or_reason.cache_clear()
    assert published_predictions().name == CHEXNET and len(server.requests['preds.csv']) == 3
    assert sorted(p.name for p in kept.parent.iterdir()) == [kept.name, 'fetch_record.json']


def test_other_bytes_are_never_scored_as_the_published_ones(served, tmp_path, capsys):
    server, _ = served
    server.faults['preds.csv'] = [('wrong bytes', 100)]*3
    assert published_predictions().name == SIMULATED
    said = capsys.readouterr().out
    assert 'SHA-256' in said and 'simulated' in said and str(tmp_path) not in said
    assert not list((tmp_path/'cache'/'predictions').glob('*.csv*'))


def test_a_server_that_refuses_or_is_absent_gives_simulated_scores_and_one_sentence(served, monkeypatch, capsys):
    server, _ = served
    server.faults['preds.csv'] = [('status', 404)]
    scored = published_predictions()
    said = capsys.readouterr().out
    assert scored.name == SIMULATED and scored.n_patients == 6187 and '404' in said and said.count('\n') == 1
    published._file_or_reason.cache_clear()
    monkeypatch.setattr(published, 'CHEXNET_FILE', replace(CHEXNET_FILE, url='http://127.0.0.1:9/preds.csv'))
    assert published_predictions().name == SIMULATED and 'cannot be reached' in capsys.readouterr().out
    monkeypatch.setattr(published, 'CHEXNET_FILE', replace(published.CHEXNET_FILE, url=server.url('preds.csv')))
    assert published_predictions().name == SIMULATED, 'asked once in a process'


def test_a_named_copy_is_taken_and_nothing_is_fetched(served, monkeypatch, tmp_path):
    server, copy = served
    monkeypatch.setenv(PREDICTIONS_VARIABLE, str(copy))
    assert published_predictions().name == CHEXNET and not server.requests['preds.csv'] and not (tmp_path/'cache').exists()


def test_a_wrong_name_or_another_file_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(PREDICTIONS_VARIABLE, str(tmp_path/'nowhere.csv'))
    with pytest.raises(UserError, match='there is no such file'): published_predictions()
    (tmp_path/'nowhere.csv').write_text('Image Index,prob_Hernia\n')
    with pytest.raises(UserError, match='not the published file'): published_predictions()


def test_simulated_on_request(monkeypatch, capsys):
    monkeypatch.setenv(PREDICTIONS_VARIABLE, 'simulated')
    scored = published_predictions()
    assert scored.name == SIMULATED and SIMULATED in capsys.readouterr().out
    assert .8 < score_table(scored).loc['macro', 'auroc'] < .87
    published_predictions(say=False)
    assert not capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(monkeypatch, tmp_path, capsys):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'file'))
    assert published_predictions().name == SIMULATED and 'cannot be made' in capsys.readouterr().out


def test_the_real_file_gives_the_published_score(monkeypatch, shared_nih):
    monkeypatch.setenv(PREDICTIONS_VARIABLE, str(shared_nih/'chexnet_predictions.csv'))
    scored = published_predictions()
    assert (len(scored), scored.n_patients) == (22_433, 6187)
    np.testing.assert_allclose(score_table(scored).loc['macro', 'auroc'], .8383, atol=5e-5)
