"""Training: interruption by kill -9, resuming, saving and loading in another process, refusals. Tiny model, few synthetic images."""
import json, signal, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.core.errors import UserError
from chestnb.model.config import SMALL_FUSION
from chestnb.evaluation.metrics import macro_auroc
from chestnb.data.leakage import LeakageError
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split
import chestnb.model.config as model_config
import chestnb.model.history as model_history
import chestnb.model.learner as model_learner
import chestnb.model.runs as model_runs
from chestnb.model.config import TrainConfig
from chestnb.model.runs import load_model, save_model
from chestnb.model.predict import predict
from chestnb.model.train import train_model

TINY = dict(model=dict(branches=['test_resnet', 'test_byobnet'], reduced_channels=8), image_size=64, batch_size=16, epochs=3, seed=3)
TIMEOUT = 300

@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)

@pytest.fixture(scope='module')
def split(dataset): return few(dataset)

def few(dataset, n_train=64, n_valid=48):
    "A small part of a split by patient"
    split = patient_split(dataset.table)
    return pd.concat([split[split.part == 'train'].head(n_train), split[split.part == 'valid'].head(n_valid)])

def history_of(folder): return pd.read_csv(folder/'history.csv').drop(columns='seconds')

def run_python(code, *arguments):
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT)

@pytest.fixture(scope='module')
def finished(dataset, split, tmp_path_factory):
    "A run that nobody disturbed: its folder and its model"
    folder = tmp_path_factory.mktemp('run')/'undisturbed'
    return folder, train_model(dataset, split, folder, TrainConfig(**TINY), progress=False)

KILLED = '''
import json, os, signal, sys
import pandas as pd
from fastai.callback.core import Callback
from chestnb.data.dataset import ChestDataset
from chestnb.model.config import TrainConfig
from chestnb.model.train import train_model
data, split, out, config = sys.argv[1:]
class Kill(Callback):
    order = 99
    def after_batch(self):
        if self.training and self.epoch == 1 and self.iter == 2: os.kill(os.getpid(), signal.SIGKILL)
train_model(ChestDataset(data), pd.read_csv(split), out, TrainConfig(**json.loads(config)), progress=False, callbacks=[Kill()])
'''

@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL on Windows')
def test_kill_and_resume_gives_the_same_history(dataset, split, finished, tmp_path):
    split.to_csv(tmp_path/'split.csv', index=False)
    out = tmp_path/'killed'
    died = run_python(KILLED, dataset.path, tmp_path/'split.csv', out, json.dumps(TINY))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(history_of(out)) == 1 and (out/model_runs.CHECKPOINT).exists()
    (out/'.last.safetensors.1.tmp').write_text('half a file') # what a kill while writing leaves
    model = train_model(dataset, split, out, TrainConfig(**TINY), resume=True, progress=False)
    folder, undisturbed = finished
    np.testing.assert_allclose(history_of(out), history_of(folder), atol=1e-5)
    for (name, a), b in zip(model.state_dict().items(), undisturbed.state_dict().values()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
    assert not list(out.glob('.*')) and not (out/model_runs.CHECKPOINT).exists()

def test_interrupted_in_the_first_epoch(dataset, split, finished, tmp_path):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY), progress=False, callbacks=[Stop()])
    assert not (tmp_path/'run/history.csv').exists()
    train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY), resume=True, progress=False)
    np.testing.assert_allclose(history_of(tmp_path/'run'), history_of(finished[0]), atol=1e-5)

def test_interrupted_between_best_weights_and_checkpoint(dataset, split, finished, tmp_path, monkeypatch):
    real, calls = model_runs.save_checkpoint, []
    def dies(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(model_runs, 'save_checkpoint', dies)
    with pytest.raises(KeyboardInterrupt): train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY), progress=False)
    monkeypatch.undo()
    model = train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY), resume=True, progress=False)
    np.testing.assert_allclose(history_of(tmp_path/'run'), history_of(finished[0]), atol=1e-5)
    assert model.info['epoch'] == finished[1].info['epoch']

def test_run_folder(dataset, split, finished):
    folder, model = finished
    assert {p.name for p in folder.iterdir()} == {'config.json', 'split.csv', 'history.csv', 'model.json', 'model.safetensors',
                                                  'train_val_loss.png', 'train_val_auc.png'}
    history = pd.read_csv(folder/'history.csv')
    assert list(history) == ['epoch', 'train_loss', 'valid_loss', 'train_auroc', 'valid_auroc', 'seconds']
    assert history.epoch.tolist() == [1, 2, 3] and history.notna().all().all()
    assert model.info['epoch'] == history.epoch[history.valid_auroc.idxmax()]
    record = json.loads((folder/'config.json').read_text())
    assert record['config']['batch_size'] == 16 and len(record['dataset']['sha256_of_data_csv']) == 64
    assert record['split']['images'] == {'train': 64, 'valid': 48} and 'torch' in record['versions']
    assert model_config.config_from_dict(record['config']) == TrainConfig(**TINY)
    assert str(dataset.path.resolve()) not in (folder/'config.json').read_text() # no machine's paths
    for path in folder.iterdir(): # neither a pickle nor a zip that holds one
        assert path.suffix in ('.json', '.csv', '.png', '.safetensors')
        assert not path.read_bytes()[:2] in (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05', b'PK')

def test_figures_say_synthetic_and_name_the_best_epoch(finished):
    history = pd.read_csv(finished[0]/'history.csv')
    for measure, best in (('auroc', history.valid_auroc.idxmax()), ('loss', history.valid_loss.idxmin())):
        ax, = model_history.plot_history(history, measure, 'synthetic').axes
        assert 'synthetic' in ax.get_title() and f'epoch {history.epoch[best]} of 3' in ax.get_title()
        assert ax.get_xlabel() and ax.get_ylabel() and len(ax.get_legend_handles_labels()[1]) >= 2
    with pytest.raises(UserError, match="'auroc' or 'loss'"): model_history.plot_history(history, 'accuracy')

PREDICTS = '''
import sys
from chestnb.data.dataset import ChestDataset
from chestnb.model.runs import load_model
from chestnb.model.predict import predict
folder, data, result, *images = sys.argv[1:]
predict(load_model(folder), ChestDataset(data), images, progress=False).to_csv(result, index=False)
'''

def test_load_in_a_new_process_gives_identical_predictions(dataset, split, finished, tmp_path):
    folder, model = finished
    images = images_in(split, 'valid')
    here = predict(model, dataset, images, progress=False)
    done = run_python(PREDICTS, folder, dataset.path, tmp_path/'there.csv', *images)
    assert done.returncode == 0, done.stderr
    there = pd.read_csv(tmp_path/'there.csv')
    assert list(there) == ['Image Index'] + [f'prob_{f}' for f in FINDINGS] and there['Image Index'].tolist() == images
    np.testing.assert_allclose(there.iloc[:, 1:], here.iloc[:, 1:], atol=1e-6)
    assert macro_auroc(dataset.targets(images), here.iloc[:, 1:].to_numpy()) == pytest.approx(model.info['valid_auroc'], abs=1e-4)

def test_predictions_do_not_depend_on_batch_order_or_mode(dataset, split, finished):
    model, images = finished[1], images_in(split, 'valid')[:9]
    plain = predict(model, dataset, images, progress=False).set_index('Image Index')
    model.train()
    turned = predict(model, dataset, images[::-1], batch_size=4, progress=False).set_index('Image Index')
    assert model.training
    model.eval()
    np.testing.assert_allclose(plain, turned.loc[images], atol=1e-6)
    with pytest.raises(UserError, match='image_size'): predict(torch.nn.Linear(1, 1), dataset, images)

def test_same_seed_same_result_other_seed_other_result(dataset, split, finished, tmp_path):
    one = TrainConfig(**TINY | {'epochs': 1})
    train_model(dataset, split, tmp_path/'a', one, progress=False)
    torch.rand(7), np.random.rand(7) # another past
    train_model(dataset, split, tmp_path/'b', one, progress=False)
    train_model(dataset, split, tmp_path/'c', TrainConfig(**TINY | {'epochs': 1, 'seed': 4}), progress=False)
    a, b, c = (history_of(tmp_path/name) for name in 'abc')
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert (a - c).abs().train_loss[0] > 1e-4

def test_existing_run_is_not_overwritten(dataset, split, finished):
    folder, _ = finished
    before = (folder/'model.safetensors').read_bytes()
    with pytest.raises(UserError, match='already holds a run'): train_model(dataset, split, folder, TrainConfig(**TINY), progress=False)
    assert (folder/'model.safetensors').read_bytes() == before

def test_folder_with_other_things_is_refused(dataset, split, tmp_path):
    (tmp_path/'thesis.txt').write_text('precious')
    with pytest.raises(UserError, match='not empty'): train_model(dataset, split, tmp_path, TrainConfig(**TINY), progress=False)
    with pytest.raises(UserError, match='is a file'): train_model(dataset, split, tmp_path/'thesis.txt', TrainConfig(**TINY), progress=False)

def test_resuming_with_other_settings_lists_the_differences(dataset, split, finished):
    folder, _ = finished
    with pytest.raises(UserError) as caught:
        train_model(dataset, few(dataset, 80), folder, TrainConfig(**TINY | {'learning_rate': 1e-2, 'epochs': 9}), resume=True, progress=False)
    for text in ('config.learning_rate: was 0.003, now 0.01', 'config.epochs: was 3, now 9', 'split.sha256', 'split.images.train: was 64, now 80'):
        assert text in str(caught.value)
    assert model_runs.record_differences({'config': {'device': 'cpu'}, 'versions': 1}, {'config': {'device': 'cuda'}, 'versions': 2}) == []

def test_resuming_a_finished_run_trains_nothing(dataset, split, finished, monkeypatch):
    monkeypatch.setattr(model_learner, 'make_learner', lambda *args, **kwargs: pytest.fail('it trained'))
    model = train_model(dataset, split, finished[0], TrainConfig(**TINY), resume=True, progress=False)
    assert not model.training

def test_nan_stops_and_names_the_epoch(dataset, split, tmp_path):
    class Poison(Callback):
        def before_batch(self):
            if self.epoch == 1: self.learn.xb = tuple(x*float('nan') for x in self.xb)
    with pytest.raises(UserError, match=r'training loss became nan in epoch 2, batch 1 of 4.*lower'):
        train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY), progress=False, callbacks=[Poison()])
    assert len(history_of(tmp_path/'run')) == 1
    assert all(t.isfinite().all() for t in load_model(tmp_path/'run').state_dict().values())

def test_bad_settings_and_splits(dataset, split, tmp_path):
    for bad in (dict(loss='hinge'), dict(epochs=0), dict(learning_rate=-1.), dict(sampler='magic'), dict(batch_size=1)):
        with pytest.raises(UserError, match=next(iter(bad))): train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY | bad))
    with pytest.raises(UserError, match='learnign_rate'): model_config.config_from_dict({'learnign_rate': 1})
    with pytest.raises(UserError, match='valid'): train_model(dataset, split[split.part == 'train'], tmp_path/'run', TrainConfig(**TINY))
    leaky = split.copy()
    leaky.loc[leaky.index[-1], 'patient_id'] = leaky.patient_id.iloc[0]
    with pytest.raises(LeakageError): train_model(dataset, leaky, tmp_path/'run', TrainConfig(**TINY))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='no CUDA GPU'): train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY | {'device': 'cuda'}))

def test_damaged_files_are_refused(finished, tmp_path):
    folder, model = finished
    save_model(model, tmp_path)
    whole = (tmp_path/'model.safetensors').read_bytes()
    (tmp_path/'model.safetensors').write_bytes(whole[:-100])
    with pytest.raises(UserError, match='damaged'): load_model(tmp_path)
    (tmp_path/'model.safetensors').write_bytes(whole)
    text = json.loads((tmp_path/'model.json').read_text())
    text['model']['reduced_channels'] = 16
    (tmp_path/'model.json').write_text(json.dumps(text))
    with pytest.raises(UserError, match='do not belong together'): load_model(tmp_path)
    with pytest.raises(UserError, match='no model.json'): load_model(tmp_path/'nowhere')

def test_discriminative_rates():
    scratch, tuned = TrainConfig(model=SMALL_FUSION), TrainConfig(model=SMALL_FUSION | {'pretrained': True})
    assert len(set(model_learner.group_rates(scratch))) == 1
    assert np.allclose(model_learner.group_rates(tuned), [3e-4, 3e-4, 3e-3, 3e-3])


def test_a_changed_image_makes_another_data_set(tmp_path):
    "A run folder is not taken for that of a data set whose pixels changed."
    from chestnb.data.dataset import ChestDataset
    from chestnb.data.phantom.cohort import make_cohort
    from chestnb.model.runs import files_digest
    folder = make_cohort(tmp_path/'cohort', n_patients=4, size=32, progress=False)
    before = files_digest(ChestDataset(folder))
    assert files_digest(ChestDataset(folder)) == before
    first, second = sorted((folder/'images').iterdir())[:2]
    first.write_bytes(second.read_bytes())
    assert files_digest(ChestDataset(folder)) != before
