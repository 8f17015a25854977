"The official test list is opened once: the ledger, and the two commands that keep it."
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestnb.commands.evaluate import chestnb_evaluate, chestnb_report
from chestnb.core.errors import UserError
from chestnb.core.locks import file_lock
from chestnb.data.findings import FINDINGS
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.data.provenance import Provenance
from chestnb.evaluation import ledger as module
from chestnb.evaluation.ledger import LEDGER_FORMAT, ledger_file, log_odds_sample, official_test_opened, read_ledger, same_run
from chestnb.evaluation.predictions import write_predictions
from chestnb.evaluation.report import document
from chestnb.evaluation.scored import join
from chestnb.evaluation.simulation import simulated_predictions

PIXEL = bytes.fromhex('89504e470d0a1a0a0000000d4948445200000001000000010806000000'
                      '1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082')


@pytest.fixture(scope='module')
def nih(): return nih_metadata()


@pytest.fixture(scope='module')
def part(nih):
    "Labels of 150 official test patients, and of 150 others."
    official = is_official_test(nih)
    rows = lambda table: table[table.patient_id.isin(table.patient_id.drop_duplicates().sample(150, random_state=0))].reset_index(drop=True)
    return rows(nih[official]), rows(nih[~official])


@pytest.fixture(scope='module')
def models(part): return [join(simulated_predictions(part[0], seed=seed), part[0], name=f'seed {seed}') for seed in range(3)]


@pytest.fixture
def files(part, tmp_path):
    "Files of SIMULATED predictions: three seeds on official test patients, one of other patients."
    table, others = part
    for seed in range(3): write_predictions(simulated_predictions(table, seed=seed), tmp_path/f'seed{seed}.csv')
    write_predictions(simulated_predictions(others), tmp_path/'others.csv')
    return tmp_path


def opened(*scored, reason=''):
    with official_test_opened(scored, reason) as said: pass
    return said


def known(): return [run.name for run in read_ledger(ledger_file())['runs']]


# -- the protocol

def test_first_again_another_and_another_with_a_reason(models):
    first, second, third = models
    for _ in range(2): assert opened(first).text.startswith('No other run has scored the official test list') and opened(first).others == 0
    with pytest.raises(UserError, match='was scored before for 1 run: seed 0 .*seed 1 is another run.*validation.*--test_again'): opened(second)
    assert known() == ['seed 0']
    for reason in ('', '  '):
        with pytest.raises(UserError, match='another run'): opened(second, reason=reason)
    assert 'was scored for 1 other run before: seed 0' in opened(second, reason='second of three').text
    said = opened(third, reason='third of three')
    assert 'for 2 other runs before: seed 0' in said.text and '"third of three"' in said.text and said.others == 2
    assert 'for 1 other run before: seed 0' in opened(second).text and 'for 1 other run since: seed 2' in opened(second).text, 'a known run needs no reason again, and its own is kept'
    assert '"second of three"' in opened(second).text
    assert known() == ['seed 0', 'seed 1', 'seed 2']


def test_two_runs_in_one_command_are_two_runs(models):
    with pytest.raises(UserError, match='would be scored for 2 runs at once'): opened(*models[:2])
    assert not known()
    opened(models[0])
    with pytest.raises(UserError, match='seed 1 is another run'): opened(*models[:2])
    said = opened(models[1], models[0], reason='planned comparison')
    assert 'for 1 other run before: seed 0' in said.text and known() == ['seed 0', 'seed 1']
    assert opened(models[0], models[0]).others == 1, 'the same run twice is one run'


def test_runs_that_are_scored_together_by_plan(models):
    first, second, third = models
    with official_test_opened([first, second], together='a fusion and its branch') as said: pass
    assert said.others == 1 and '"a fusion and its branch"' in said.text and known() == ['seed 0', 'seed 1']
    with official_test_opened([first, second], together='a fusion and its branch'): pass
    with pytest.raises(UserError, match='seed 2 is another run'):
        with official_test_opened([third, first], together='a fusion and its branch'): pass
    with official_test_opened([third, first], 'planned', 'a fusion and its branch') as said: pass
    assert '"planned"' in said.text and known() == ['seed 0', 'seed 1', 'seed 2']


def test_the_demo_on_the_official_split(part, tmp_path, capsys):
    from types import SimpleNamespace
    from chestnb.commands.pipeline import write_results
    test, train = part
    table = pd.concat([test, train], ignore_index=True)
    table.attrs = dict(test.attrs)
    split = pd.DataFrame({'image': table.image, 'patient_id': table.patient_id, 'part': ['test']*len(test) + ['train']*len(train)})
    def demo(out, seeds, **more):
        return write_results(SimpleNamespace(table=table), split, tmp_path/out, dict(zip(('fusion', 'branch alone'), (simulated_predictions(test, seed=seed) for seed in seeds))), **more)
    said = lambda out: json.loads((tmp_path/out/'metrics.json').read_text())['official_test']
    for _ in range(2): demo('a', (0, 1))
    assert 'for 1 other run since: a/branch alone' in said('a') and 'the plan of chestnb_demo' in said('a') and said('a') in capsys.readouterr().out
    with pytest.raises(UserError, match='b/fusion is another run'): demo('b', (2, 1))
    assert not (tmp_path/'b').exists()
    demo('b', (2, 1), test_again='second seed, planned')
    assert 'for 2 other runs before: a/fusion' in said('b') and '"second seed, planned"' in said('b')


def test_what_is_one_run(models):
    first, second, _ = models
    sample = log_odds_sample(first)
    rounded = first.with_scores(np.clip(first.scores*(1 + 1e-3*np.random.default_rng(0).standard_normal(first.scores.shape)), 0, 1))
    for scored in (rounded, first.rows(range(len(first))[::-1]), first.rows(range(0, len(first), 2)), first.rows((first.table['No Finding'] == 0).to_numpy())):
        assert same_run(sample, log_odds_sample(scored))
    calibrated = first.with_scores(first.scores/(first.scores + 2*(1 - first.scores)))
    for scored in (second, calibrated, first.rows([3])): assert not same_run(sample, log_odds_sample(scored))
    for _ in range(2): opened(first.rows([3]))
    assert known() == ['seed 0'], 'too few numbers to tell apart, and yet the same'
    certain = first.with_scores((first.scores > .5).astype(float))
    assert np.isfinite([value for row in log_odds_sample(certain).values() for value in row.values()]).all()


def test_one_rare_finding_tells_two_runs_apart(models):
    from chestnb.evaluation.comparison import of_findings
    a, b = (log_odds_sample(of_findings(scored, ('Hernia',))) for scored in models[:2])
    assert same_run(a, a) and not same_run(a, b)


def test_only_the_official_list_is_recorded(models, nih, part, embedded):
    from chestnb.data.tables import read_metadata
    synthetic, other = read_metadata(embedded/'data.csv'), part[1]
    for table in (nih.head(400), other, synthetic): assert opened(join(simulated_predictions(table), table)) == ('', 0)
    foreign = replace(models[0], provenance=Provenance('Another hospital', 'its archive'))
    assert opened(foreign) == ('', 0) and not ledger_file().exists(), 'nothing to record, nothing written'
    opened(models[0])
    run, = read_ledger(ledger_file())['runs']
    assert run.images == len(models[0]) < 25_596 and run.first == date.today().isoformat()


def test_a_part_then_the_whole_is_one_run_with_the_larger_number(nih):
    official = nih[is_official_test(nih)].reset_index(drop=True)
    whole = join(simulated_predictions(official), official, name='whole')
    opened(whole.rows(range(6_000)))
    assert opened(whole).others == 0
    run, = read_ledger(ledger_file())['runs']
    assert run.images == 25_596


def test_a_failure_takes_the_line_back_and_only_that_one(models):
    for error in (OSError('disk full'), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with official_test_opened([models[0]]): raise error
        assert not known()
    opened(models[0])
    with pytest.raises(OSError):
        with official_test_opened([models[0]]): raise OSError('disk full')
    assert known() == ['seed 0'], 'it was scored before'
    with pytest.raises(OSError):
        with official_test_opened([models[1], models[0]], 'planned'): raise OSError('disk full')
    assert known() == ['seed 0']


# -- the file

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"format": "another"}', f'{{"format": "{LEDGER_FORMAT}", "begun": "yesterday", "runs": []}}',
                                  f'{{"format": "{LEDGER_FORMAT}", "begun": "2026-01-01", "runs": {{}}}}'[:-4],
                                  f'{{"format": "{LEDGER_FORMAT}", "begun": "2026-01-01", "runs": [{{"name": "a"}}]}}',
                                  f'{{"format": "{LEDGER_FORMAT}", "begun": "2026-01-01", "runs": [{{"name": "a", "first": "2026-01-01", "images": "many", "sample": {{}}}}]}}',
                                  f'{{"format": "{LEDGER_FORMAT}", "begun": "2026-01-01", "runs": [{{"name": "a", "first": "2026-01-01", "images": 9, "sample": {{"b": 1}}}}]}}',
                                  '['*100_000])
def test_a_damaged_ledger_is_left_alone_and_nothing_is_scored(models, text):
    ledger_file().write_text(text)
    with pytest.raises(UserError, match='(?s)cannot be read as the ledger.*left alone.*put a copy back'): opened(models[0])
    assert ledger_file().read_text() == text


def test_bytes_that_are_no_text(models):
    ledger_file().write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match='left alone'): opened(models[0])


def test_where_nobody_may_write_nothing_is_scored(models, monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    monkeypatch.setenv('CHESTNB_LEDGER', str(tmp_path/'file'/'ledger.json'))
    with pytest.raises(UserError, match='cannot be written.*CHESTNB_LEDGER=FILE'): opened(models[0])
    monkeypatch.setenv('CHESTNB_LEDGER', str(tmp_path)) # a folder
    with pytest.raises(UserError, match='left alone'): opened(models[0])


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, 'geteuid') else True, reason='root may write everywhere')
def test_a_folder_without_the_right_to_write(models, monkeypatch, tmp_path):
    monkeypatch.setenv('CHESTNB_LEDGER', str(tmp_path/'closed'/'ledger.json'))
    (tmp_path/'closed').mkdir(mode=0o500)
    with pytest.raises(UserError, match='cannot be written'): opened(models[0])


def test_a_ledger_in_use_is_waited_for_and_then_named(models, monkeypatch):
    monkeypatch.setattr(module, 'PATIENCE', .2)
    with file_lock(ledger_file().with_name('official_test.json.lock'), 'another score'):
        with pytest.raises(UserError, match='another score .process'): opened(models[0])


def test_processes_at_once_lose_no_line(part, tmp_path):
    "Four processes score four runs; the ledger has them all."
    code = ('import sys, pandas as pd; from chestnb.evaluation.ledger import official_test_opened; from chestnb.evaluation.scored import join; '
            'from chestnb.evaluation.simulation import simulated_predictions; from chestnb.data.nih import nih_metadata; '
            'nih = nih_metadata(); table = nih[nih.patient_id.isin([3, 13, 17, 28, 30])].reset_index(drop=True); seed = int(sys.argv[1])\n'
            'with official_test_opened([join(simulated_predictions(table, seed=seed), table, name=f"run {seed}")], "planned"): pass')
    official = sorted(module_patients())[:5]
    code = code.replace('[3, 13, 17, 28, 30]', repr(official))
    running = [subprocess.Popen([sys.executable, '-c', code, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(4)]
    for process in running:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    assert sorted(known()) == [f'run {seed}' for seed in range(4)]
    assert [path.name for path in ledger_file().parent.iterdir()] == ['official_test.json']


def module_patients():
    from chestnb.data.nih import official_test_patients
    return official_test_patients()


def test_the_ledger_is_no_cache(monkeypatch):
    monkeypatch.delenv('CHESTNB_LEDGER')
    from chestnb.core.cache import cache_folder
    assert not ledger_file().is_relative_to(cache_folder())


# -- the commands

def test_evaluate_says_it_in_the_scores(files, capsys):
    said = lambda out: json.loads((files/out/'metrics.json').read_text())['official_test']
    chestnb_evaluate(str(files/'seed0.csv'), data='nih', out=str(files/'a'))
    assert 'No other run has scored the official test list' in capsys.readouterr().out and said('a').startswith('No other run')
    chestnb_evaluate(str(files/'seed0.csv'), data='nih', out=str(files/'b'), protocol='without_no_finding')
    assert known() == ['seed0'], 'another folder and another protocol, the same run'
    with pytest.raises(UserError, match='seed1 is another run'): chestnb_evaluate(str(files/'seed1.csv'), data='nih', out=str(files/'c'))
    assert not (files/'c').exists(), 'not scored'
    chestnb_evaluate(str(files/'seed1.csv'), data='nih', out=str(files/'c'), test_again='second of two seeds')
    assert 'was scored for 1 other run before: seed0' in said('c') and '"second of two seeds"' in said('c')
    chestnb_evaluate(str(files/'others.csv'), data='nih', out=str(files/'d'))
    assert said('d') == '' and known() == ['seed0', 'seed1']


def test_refused_folder_records_nothing(files):
    (files/'a').mkdir()
    (files/'a'/'metrics.csv').write_text('mine')
    with pytest.raises(UserError, match='left alone'): chestnb_evaluate(str(files/'seed0.csv'), data='nih', out=str(files/'a'))
    assert not known()


def test_report_says_it_on_its_page(files, monkeypatch, capsys):
    monkeypatch.setattr(document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)
    report = lambda name, out, **more: chestnb_report(str(files/f'{name}.csv'), data='nih', out=str(files/out), n_resamples=5, **more)
    report('seed0', 'a')
    page = (files/'a'/'report.html').read_text()
    assert 'No other run has scored the official test list' in page and 'Other runs that scored this list' not in page
    with pytest.raises(UserError, match='seed1 is another run'): report('seed1', 'b')
    with pytest.raises(UserError, match='seed1 is another run'): report('seed0', 'b', compare=str(files/'seed1.csv'))
    assert not (files/'b').exists() and known() == ['seed0']
    capsys.readouterr()
    report('seed1', 'b', compare=str(files/'seed0.csv'), test_again='a <planned> comparison')
    page, terminal = (files/'b'/'report.html').read_text(), capsys.readouterr().out
    for text in (page, terminal): assert 'was scored for 1 other run before: seed0' in text and 'Other runs that scored this list' in text
    assert 'a &lt;planned&gt; comparison' in page and '--test_again' in page
    assert 'was scored for 1 other run before' in (files/'b'/'data_card.md').read_text()
    facts = json.loads((files/'b'/'numbers.json').read_text())['facts']
    assert facts['other_runs'] == 1 and known() == ['seed0', 'seed1']


def test_a_report_made_without_the_command_says_that_nobody_asked(files, nih, monkeypatch):
    from chestnb.evaluation.report.page import write_report
    from chestnb.evaluation.report.study import make_study
    monkeypatch.setattr(document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)
    report = write_report(make_study(files/'seed0.csv', nih, n_resamples=0), files/'out', disable=True)
    assert 'is not known' in report.facts['ledger_text'] and not known()
    assert write_report(make_study(files/'others.csv', nih, n_resamples=0), files/'other', disable=True).facts['ledger_text'] == ''


def test_the_command_line_ends_in_one_sentence(files):
    words = lambda name: [sys.executable, '-c', 'import sys; sys.argv[0] = "chestnb_evaluate"; from chestnb.commands.evaluate import chestnb_evaluate; chestnb_evaluate()',
                          name, '--data', 'nih', '--out', f'{name}.out']
    assert subprocess.run(words('seed0.csv'), cwd=files, capture_output=True, text=True).returncode == 0
    done = subprocess.run(words('seed1.csv'), cwd=files, capture_output=True, text=True)
    assert done.returncode == 2 and '--test_again' in done.stderr and 'Traceback' not in done.stderr
    assert subprocess.run([*words('seed1.csv'), '--test-again', 'planned'], cwd=files, capture_output=True, text=True).returncode == 0
