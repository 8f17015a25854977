"""Several processes: shares that hold each image once, gathered scores, one writer, a killed process. Two CPU processes over gloo, synthetic images."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from chestnb.data.dataset import ChestDataset
from chestnb.data.augment import XrayAugment
from chestnb.data.datablock import chest_dataloaders
from chestnb.data.loaders import seed_dataloaders
from chestnb.model.distributed import (ProcessShare, first_decides, gather, images_per_process, join_processes, loaders_of, lost_process,
                                       n_processes)
from chestnb.core.errors import UserError
from chestnb.evaluation.metrics import macro_auroc
from chestnb.data.parts import images_in, save_split
from chestnb.data.split import patient_split
from chestnb.model.runs import load_model
from chestnb.model.predict import predict

BIN = Path(sys.executable).parent
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


@pytest.fixture(scope='module')
def few(dataset, tmp_path_factory):
    "A small split with an odd number of validation images, as a CSV"
    split = patient_split(dataset.table)
    images = split.groupby(['part', 'patient_id']).size()
    train, valid = images['train'].head(25), images['valid'].head(25)
    if valid.sum() % 2 == 0: valid = valid.drop(valid[valid % 2 == 1].index[0])
    split['part'] = split.patient_id.map({p: 'train' for p in train.index} | {p: 'valid' for p in valid.index}).fillna('test')
    path = tmp_path_factory.mktemp('split')/'split.csv'
    save_split(split, path)
    assert len(images_in(split, 'valid')) % 2 == 1
    return path


def launch(folder, few, dataset, *words, n=2):
    command = [BIN/'torchrun', '--nproc-per-node', n, BIN/'chestnb_train', '--out', 'run', '--split', few, '--data', dataset.path,
               '--model', 'small', '--image_size', 32, '--batch_size', 16, *words]
    return subprocess.Popen([str(w) for w in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


class Rows:
    "Stands for a loader of `n` images"
    def __init__(self, n, bs, drop_last):
        self.n, self.bs, self.drop_last, self.dataset, self.device = n, bs, drop_last, range(n), torch.device('cpu')
        self.num_workers, self.offs, self.pin_memory = 0, 0, False
        self.fake_l = type('Fake', (), dict(pin_memory=False, num_workers=0, timeout=0, persistent_workers=False, pin_memory_device=''))()
    def get_idxs(self): return list(np.random.default_rng(self.n).permutation(self.n))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 300), world=st.integers(1, 5), bs=st.integers(1, 9))
def test_validation_shares_hold_each_image_once_and_training_shares_whole_steps(n, world, bs):
    order = Rows(n, bs, False).get_idxs()
    valid = [ProcessShare(Rows(n, bs, False), rank=r, world_size=world) for r in range(world)]
    assert sum((share.get_idxs() for share in valid), []) == order
    assert all(len(share) == -(-len(share.get_idxs())//bs) for share in valid)
    train = [ProcessShare(Rows(n, bs, True), rank=r, world_size=world) for r in range(world)]
    shares = [share.get_idxs() for share in train]
    assert len({len(s) for s in shares}) == 1 and all(len(s) == bs*len(share) for s, share in zip(shares, train))
    steps = [sum((s[k*bs:(k + 1)*bs] for s in shares), []) for k in range(len(train[0]))]
    assert sum(steps, []) == order[:n//(bs*world)*bs*world]


def test_same_order_other_augmentation(dataset):
    dls = chest_dataloaders(dataset, patient_split(dataset.table), image_size=32, batch_size=16, device='cpu')
    def drawn(process):
        seed_dataloaders(dls, 0, 3, process)
        augment = next(t for t in dls.train.after_batch.fs if isinstance(t, XrayAugment))
        return dls.train.get_idxs(), augment.draws(2, 1, torch.device('cpu'))
    (order, a), (same_order, b) = drawn(0), drawn(1)
    assert order == same_order and not torch.allclose(a, b)
    assert loaders_of([ProcessShare(dls.train, rank=0, world_size=2)])[0] is dls.train


def test_alone_nothing_changes(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert n_processes() == 1 and images_per_process(7) == 7 and gather('x') == ['x']
    assert lost_process(RuntimeError('Connection closed by peer')) is None
    monkeypatch.setenv('WORLD_SIZE', '4')
    with pytest.raises(UserError, match='multiple of 4'): images_per_process(30)
    with pytest.raises(UserError, match='two images'): images_per_process(4)
    assert '--resume' in str(lost_process(RuntimeError('Connection closed by peer')))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3'); monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match='which has 2 GPU'): join_processes()


STOPPED = '''
import sys, threading, time
from chestnb.model.distributed import listens_for_the_end
with listens_for_the_end():
    print('epoch   1, not flushed')
    print('ready', file=sys.stderr, flush=True)
    {waits}
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGTERM between processes on Windows')
@pytest.mark.parametrize('waits', ['time.sleep(60)', "sum(i*i for i in range(10**12))", "import ctypes; ctypes.CDLL(None).sleep(60)"], ids=['asleep', 'busy', 'in C'])
def test_a_launched_process_that_is_ended_says_its_sentence_whatever_it_is_doing(waits):
    "The launcher may end the survivor (SIGTERM) before it has noticed that the other is gone"
    running = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', STOPPED.format(waits=waits)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**ENV, 'WORLD_SIZE': '2', 'RANK': '1'})
    assert running.stderr.readline() == 'ready\n'
    time.sleep(.1)
    started = time.time()
    running.terminate()
    said, complained = running.communicate(timeout=60)
    assert time.time() - started < 10 and running.returncode == 143
    assert complained.count('another process of this run has ended') == 1 and '--resume' in complained
    assert 'epoch   1' in said


def test_signals_are_as_before_when_all_went_well(monkeypatch):
    from chestnb.model.distributed import listens_for_the_end
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with listens_for_the_end(): assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before and signal.set_wakeup_fd(-1) == -1


def test_the_first_process_decides_for_all(monkeypatch):
    import chestnb.model.distributed as distributed
    def refuse(): raise UserError('taken')
    with pytest.raises(UserError, match='taken'): first_decides(refuse)
    monkeypatch.setattr(distributed, 'is_first_process', lambda: False)
    monkeypatch.setattr(distributed, 'gather', lambda own: [(5, None), own])
    assert first_decides(lambda: pytest.fail('only the first may ask')) == 5
    monkeypatch.setattr(distributed, 'gather', lambda own: [(None, UserError('taken')), own])
    with pytest.raises(UserError, match='taken'): first_decides(lambda: 5)


def test_a_held_run_folder_is_refused_by_every_process_of_a_launch(dataset, few, tmp_path):
    from chestnb.core.locks import folder_lock
    (tmp_path/'run').mkdir()
    with folder_lock(tmp_path/'run', 'somebody else'):
        done = launch(tmp_path, few, dataset, '--epochs', 1)
        _, complained = done.communicate(timeout=300)
    assert done.returncode != 0 and complained.count('somebody else (process') == 2, complained # both say why, nobody waits
    assert not (tmp_path/'run/config.json').exists()


def test_two_processes_gather_the_score_of_one_and_one_writes(dataset, few, tmp_path):
    done = launch(tmp_path, few, dataset, '--epochs', 2)
    said, complained = done.communicate(timeout=300)
    assert done.returncode == 0, complained
    assert said.count('epoch   1') == 1 and said.count('Best weights') == 1, said
    folder = tmp_path/'run'
    assert len(pd.read_csv(folder/'history.csv')) == 2 and not list(folder.glob('.*'))
    model, names = load_model(folder), images_in(pd.read_csv(few), 'valid')
    alone = macro_auroc(dataset.targets(names), predict(model, dataset, names, progress=False).drop(columns='Image Index').to_numpy())
    assert abs(alone - model.info['valid_auroc']) < 1e-6


def test_two_processes_train_two_views_with_branches_that_wait_and_an_average(dataset, few, tmp_path):
    "Branches without gradients in the first epoch, losses of heads outside of the model's output, one average that both validate"
    done = launch(tmp_path, few, dataset, '--epochs', 2, '--views', 'whole,lungs', '--branch_heads', 'yes', '--answer', 'mean', '--frozen_epochs', 1, '--average_weights', .8)
    _, complained = done.communicate(timeout=300)
    assert done.returncode == 0, complained
    model, names = load_model(tmp_path/'run'), images_in(pd.read_csv(few), 'valid')
    alone = macro_auroc(dataset.targets(names), predict(model, dataset, names, progress=False).drop(columns='Image Index').to_numpy())
    assert abs(alone - model.info['valid_auroc']) < 1e-6


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL on Windows')
def test_a_killed_process_ends_the_run_with_a_sentence_and_the_checkpoint_resumes(dataset, few, tmp_path):
    import psutil
    running, history = launch(tmp_path, few, dataset, '--epochs', 60), tmp_path/'run'/'history.csv'
    deadline = time.time() + 240
    while not history.exists() and running.poll() is None and time.time() < deadline: time.sleep(.05)
    if running.poll() is not None: pytest.fail(f'the run ended by itself: {running.communicate()[1][-2000:]}')
    children = [c for c in psutil.Process(running.pid).children() if 'RANK' in c.environ()]
    next(c for c in children if c.environ()['RANK'] == '1').send_signal(signal.SIGKILL)
    _, complained = running.communicate(timeout=120)
    assert running.returncode != 0
    assert 'another process of this run has ended' in complained and '--resume' in complained
    assert 'Signal 9' in complained or 'exitcode: -9' in complained
    assert not any(c.is_running() for c in children)
    before = pd.read_csv(history)
    record = json.loads((tmp_path/'run'/'config.json').read_text())
    record['config']['epochs'] = len(before) + 1   # a shorter run, so that the test ends
    (tmp_path/'run'/'config.json').write_text(json.dumps(record))
    again = launch(tmp_path, few, dataset, '--epochs', len(before) + 1, '--resume')
    _, complained = again.communicate(timeout=300)
    assert again.returncode == 0, complained
    pd.testing.assert_frame_equal(pd.read_csv(history).iloc[:len(before)], before)
    assert len(pd.read_csv(history)) == len(before) + 1


def test_the_demo_says_that_it_runs_in_one_process(tmp_path):
    done = subprocess.run([BIN/'chestnb_demo'], cwd=tmp_path, capture_output=True, text=True, env={**ENV, 'WORLD_SIZE': '2', 'RANK': '0'})
    assert done.returncode == 2 and 'one process' in done.stderr and 'chestnb_train' in done.stderr
    assert not (tmp_path/'runs').exists()
