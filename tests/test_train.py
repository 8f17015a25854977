"""Training: interruption by kill -9, resuming, saving and loading in another process, refusals. Tiny model, few synthetic images."""
import json, shutil, signal, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, safetensors.torch, torch
from fastai.callback.core import Callback
from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.core.errors import UserError
from chestnb.model.choices import ATTENTIONS, LOSSES
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
from chestnb.model.fusion import FusionModel
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
from chestnb.model.fusion import FusionModel
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
    with pytest.raises(UserError, match='image_size'): predict(FusionModel(('test_resnet',), reduced_channels=8), dataset, images)

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
        def after_pred(self):
            if self.epoch == 1: self.learn.pred = self.pred*float('nan')
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
    scratch, tuned = TrainConfig(model=SMALL_FUSION), TrainConfig(model=SMALL_FUSION | {'weights': ['none', 'imagenet']})
    assert len(set(model_learner.group_rates(scratch))) == 1
    assert np.allclose(model_learner.group_rates(tuned), [3e-4, 3e-3])


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


# -- findings of a hospital's own, unknown labels, one finding

def hospital(dataset, findings=('Mass', 'Fracture')):
    "The synthetic images with other findings, of which every fifth label is unknown; the last one is present in validation only."
    other = ChestDataset(dataset.path)
    table = other.table.drop(columns=list(FINDINGS))
    split = few(dataset)
    for i, finding in enumerate(findings):
        values = dataset.table[FINDINGS[i]].astype(float).to_numpy(copy=True)
        values[i::5] = np.nan
        table[finding] = values
    table.loc[table['image'].isin(images_in(split, 'train')), findings[-1]] = 0.
    table.attrs['findings'] = tuple(findings)
    other.table = table
    return other, split

def test_unknown_labels_train_and_the_findings_of_the_data_set_reach_the_predictions(dataset, tmp_path):
    other, split = hospital(dataset)
    with pytest.warns(UserWarning, match='no training image has Fracture'):
        model = train_model(other, split, tmp_path/'run', TrainConfig(**TINY | {'epochs': 1, 'sampler': 'balanced'}), progress=False)
    assert model.info['findings'] == ['Mass', 'Fracture'] and model.info['unknown'] == 'mask'
    assert model.info['provenance']['synthetic'] and model.info['trained_on']['findings'] == ['Mass', 'Fracture']
    names = images_in(split, 'valid')
    table, targets = predict(load_model(tmp_path/'run'), other, names, progress=False), other.targets(names)
    assert list(table) == ['Image Index', 'prob_Mass', 'prob_Fracture'] and np.isnan(targets).any()
    each = [macro_auroc(targets[known, i][:, None], table.iloc[:, i + 1].to_numpy()[known, None]) for i, known in enumerate(~np.isnan(targets.T))]
    assert np.nanmean(each) == pytest.approx(model.info['valid_auroc'], abs=1e-6) # over the known cells
    assert history_of(tmp_path/'run').notna().all().all()

def test_one_finding_trains_with_each_loss_that_counts(dataset, tmp_path):
    other, split = hospital(dataset, ('Mass', 'Fracture'))
    table = other.table.drop(columns='Fracture')
    table.attrs['findings'] = ('Mass',)
    other.table = table
    model = train_model(other, split, tmp_path/'run', TrainConfig(**TINY | {'epochs': 1, 'loss': 'weighted_bce'}), progress=False)
    assert model.findings == ('Mass',) and 0 <= model.info['valid_auroc'] <= 1
    assert list(predict(model, other, images_in(split, 'valid')[:3], progress=False)) == ['Image Index', 'prob_Mass']

def test_nothing_known_is_refused(dataset, tmp_path):
    other, split = hospital(dataset)
    other.table.loc[other.table['image'].isin(images_in(split, 'train')), ['Mass', 'Fracture']] = np.nan
    with pytest.raises(UserError, match='No label of the training part is known'): train_model(other, split, tmp_path/'run', TrainConfig(**TINY))

# -- the run folder is one run's

HOLDS = """
import sys, time
import pandas as pd
from fastai.callback.core import Callback
from chestnb.data.dataset import ChestDataset
from chestnb.model.config import TrainConfig
from chestnb.model.train import train_model
class Slow(Callback):
    def before_batch(self):
        print('first batch', flush=True)
        time.sleep(120)
train_model(ChestDataset(sys.argv[1]), pd.read_csv(sys.argv[2]), sys.argv[3], TrainConfig(image_size=32, batch_size=16), progress=False, callbacks=[Slow()])
"""

def test_a_second_command_cannot_use_the_run_folder_before_the_first_epoch_ends(dataset, split, tmp_path):
    split.to_csv(tmp_path/'split.csv', index=False)
    out = tmp_path/'run'
    first = subprocess.Popen([sys.executable, '-c', HOLDS, str(dataset.path), str(tmp_path/'split.csv'), str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == 'first batch\n'
        with pytest.raises(UserError, match=f'a training run .process {first.pid} on'):
            train_model(dataset, split, out, TrainConfig(**TINY), resume=True, progress=False)
    finally: first.kill(); first.communicate()
    train_model(dataset, split, out, TrainConfig(**TINY | {'epochs': 1}), progress=False) # a killed holder holds nothing
    assert not list(out.glob('.*'))

def test_a_refused_folder_stays_as_it_was(dataset, split, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/thesis.txt').write_text('precious')
    with pytest.raises(UserError, match='not empty'): train_model(dataset, split, tmp_path/'mine', TrainConfig(**TINY), progress=False)
    assert [path.name for path in (tmp_path/'mine').iterdir()] == ['thesis.txt']

def test_a_run_of_the_first_version_is_not_continued_but_read(finished, tmp_path):
    folder, model = finished
    record, info = (json.loads((folder/name).read_text()) for name in ('config.json', 'model.json'))
    for path in folder.iterdir(): (tmp_path/path.name).write_bytes(path.read_bytes())
    del record['format']
    (tmp_path/'config.json').write_text(json.dumps(record))
    with pytest.raises(UserError, match='begun by chestnb 0.1'): model_runs.open_run(tmp_path, record, resume=True)
    old = {key: value for key, value in info['model'].items() if key not in ('weights', 'findings', 'input_scales')} | {'pretrained': False, 'n_findings': 14}
    (tmp_path/'model.json').write_text(json.dumps(info | {'format': 'chestnb-1', 'model': old}))
    again, x = load_model(tmp_path), torch.rand(2, 1, 64, 64)
    assert {(b.scale.mean, b.scale.deviation) for b in again.branches} == {(.449, .226)} # what 0.1 did to the images before
    for branch, old_one in zip(model.branches, again.branches): # the same layers behind it
        with torch.no_grad(): torch.testing.assert_close(old_one.body(x)[-1], branch.eval().body(x)[-1])
    assert again.findings == tuple(FINDINGS) and again.info['format'] == 'chestnb-1'
    (tmp_path/'model.json').write_text(json.dumps(info | {'format': 'chestnb-9'}))
    with pytest.raises(UserError, match="format 'chestnb-9'"): load_model(tmp_path)

def test_an_early_stop_ends_the_run(dataset, split, tmp_path):
    from fastai.callback.tracker import EarlyStoppingCallback
    stop = EarlyStoppingCallback('valid_auroc', min_delta=2., patience=1)
    config = TrainConfig(**TINY | {'epochs': 9})
    train_model(dataset, split, tmp_path/'run', config, progress=False, callbacks=[stop])
    assert 1 <= len(history_of(tmp_path/'run')) < 9 and not (tmp_path/'run'/model_runs.CHECKPOINT).exists()
    before = (tmp_path/'run/model.safetensors').read_bytes()
    train_model(dataset, split, tmp_path/'run', config, resume=True, progress=False) # over is over
    assert (tmp_path/'run/model.safetensors').read_bytes() == before

# -- lungs, machines, options

def test_images_without_a_mask_are_counted_where_the_lungs_are_looked_at(dataset, split, finished, tmp_path):
    import shutil
    from chestnb.data.masks import write_segmentation
    names = images_in(split, 'valid')[:6]
    (tmp_path/'images').mkdir()
    for name in names: shutil.copy(dataset.image_path(name), tmp_path/'images'/name)
    shutil.copy(dataset.metadata_path, tmp_path/'data.csv')
    masks = dataset.segmentation
    write_segmentation(masks[masks['image'].isin(names[:4])], tmp_path/'segmentation.csv')
    some, model = ChestDataset(tmp_path, on_mismatch='drop'), finished[1]
    with pytest.warns(UserWarning, match='2 of 6 images have no lung mask'): table = predict(model, some, names, views=['lungs'], progress=False)
    assert table.attrs['shown_whole'] == names[4:]
    whole = predict(model, some, names, progress=False)
    same = np.isclose(table.iloc[:, 1:], whole.iloc[:, 1:]).all(axis=1)
    assert same.tolist() == [False]*4 + [True]*2 and whole.attrs['shown_whole'] == []

def test_peak_memory_without_the_module_resource(monkeypatch):
    "0.1 trained to the end on Windows and then failed at `import resource`"
    from chestnb.model.machine import peak_memory
    here = peak_memory()
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert .05 < peak_memory() <= here*1.01

def test_small_shared_memory_is_refused_before_the_start(monkeypatch):
    import shutil
    from chestnb.model import machine
    usage = shutil.disk_usage('/')._replace(free=2_000_000)
    monkeypatch.setattr(machine, 'SHARED_MEMORY', machine.Path('/'))
    monkeypatch.setattr(machine.shutil, 'disk_usage', lambda path: usage)
    monkeypatch.setattr(machine, 'pick_device', lambda name: torch.device('cuda:0'))
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with pytest.raises(UserError, match='2 MB free; 2 processes.*--shm-size'): machine.check_machine(TrainConfig())
    monkeypatch.setenv('NCCL_SHM_DISABLE', '1')
    assert machine.check_machine(TrainConfig()).type == 'cuda'
    monkeypatch.delenv('NCCL_SHM_DISABLE'); monkeypatch.setenv('LOCAL_WORLD_SIZE', '1')
    assert machine.check_machine(TrainConfig()).type == 'cuda' # one process needs none: threads read

def test_every_choice_is_an_option_with_help_and_without_torch():
    code = ("import sys\nfrom dataclasses import fields\nfrom chestnb.model.config import *\n"
            "options = config_options()\nassert 'torch' not in sys.modules\n"
            "assert {f.name for c in (TrainConfig, ModelOptions) for f in fields(c)} - {'model'} == set(options)\n"
            "assert all(o.help and o.kind in (bool, int, float, str) for o in options.values())")
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(model_config.CHOICES['loss']) == set(LOSSES) and set(model_config.CHOICES['attention']) == {*ATTENTIONS, 'none'}

@pytest.mark.parametrize('asked, expected', [
    (dict(branches='resnet18', weights='none'), dict(branches=['resnet18'], weights='none', branch_stages=-1)),
    (dict(branch_stages='-2,-1'), dict(branch_stages=[-2, -1])),
    (dict(attention='cbam', reduced_channels=8, dropout=0.5), dict(attention='cbam', reduced_channels=8, dropout=0.5)),
    (dict(weights='none,imagenet'), dict(weights=['none', 'imagenet']))])
def test_options_of_the_model(asked, expected):
    model = model_config.config_from_options('small', **asked).model
    assert {name: model[name] for name in expected} == expected

def test_a_zero_is_a_zero_and_nothing_is_nothing():
    "0.1 took seed=0 and weight_decay=0 for 'not given'"
    config = model_config.config_from_options('reference', weight_decay=0., seed=0, num_workers=0, epochs=None, loss='')
    assert (config.weight_decay, config.seed, config.num_workers, config.epochs, config.loss) == (0., 0, 0, 24, 'bce')
    with pytest.raises(UserError, match='loss'): model_config.config_from_options(loss='hinge')

def test_unfinite_loss_is_found_in_groups_on_a_gpu(monkeypatch):
    "Without a look at every batch: as on a GPU, whose tensors say so"
    from types import SimpleNamespace
    recorder = model_runs.RunRecorder('unused', TrainConfig())
    class OnGPU:
        device = torch.device('cuda')
        def __init__(self, value): self.value = torch.tensor(value)
        def detach(self): return self.value
    looks = []
    monkeypatch.setattr(model_runs.torch, 'stack', lambda losses: looks.append(len(losses)) or torch.tensor([float(loss) for loss in losses]))
    def see(i, value, n=120):
        recorder.learn = SimpleNamespace(loss=OnGPU(value), iter=i, n_iter=n, training=True, epoch=0)
        recorder.after_loss()
    with pytest.raises(model_runs.CancelFitException):
        for i in range(120): see(i, float('inf') if i == 70 else 1.)
    assert looks == [50, 50] and 'batch 71 of 120' in recorder.problem

def test_early_stopping_goes_on_counting_after_an_interruption(dataset, split, tmp_path):
    from fastai.callback.tracker import EarlyStoppingCallback
    def stop(): return EarlyStoppingCallback('valid_loss', min_delta=100., patience=3)
    class PowerCut(Callback):
        def after_batch(self):
            if self.training and self.epoch == 2: raise KeyboardInterrupt
    config = TrainConfig(**TINY | {'epochs': 9, 'image_size': 32})
    with pytest.raises(KeyboardInterrupt): train_model(dataset, split, tmp_path/'cut', config, progress=False, callbacks=[stop(), PowerCut()])
    assert len(history_of(tmp_path/'cut')) == 2
    for name in ('cut', 'whole'): train_model(dataset, split, tmp_path/name, config, resume=True, progress=False, callbacks=[stop()])
    cut, whole = history_of(tmp_path/'cut'), history_of(tmp_path/'whole')
    assert len(cut) == len(whole) < 9
    np.testing.assert_allclose(cut, whole, atol=1e-5)

BENCHMARK = Path(__file__).resolve().parent.parent/'benchmarks'/'gpu_speed.py'

@pytest.mark.skipif(not BENCHMARK.exists(), reason='benchmarks are not part of an installed package')
def test_gpu_benchmark_says_not_run_without_a_gpu_and_runs_as_a_smoke_test():
    import os
    blind = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    said = subprocess.run([sys.executable, BENCHMARK, '--json'], capture_output=True, text=True, env=blind, timeout=TIMEOUT)
    assert said.returncode == 0 and 'not run: no CUDA GPU' in said.stdout and '2 views' in said.stdout, said.stderr
    smoke = subprocess.run([sys.executable, BENCHMARK, '--cpu', '--json'], capture_output=True, text=True, env=blind, timeout=TIMEOUT)
    assert smoke.returncode == 0, smoke.stderr
    rows = {figure: (target, value) for figure, target, value in json.loads(smoke.stdout.splitlines()[-1])}
    target, ratio = rows['training from packs / resident batch']
    assert target == 'none' and 0 < float(ratio) < 3

# -- damaged run folders

def test_a_run_whose_history_is_lost_is_not_trained_over(finished, dataset, split, tmp_path):
    "with --resume, a finished run without a readable history.csv was trained again from the start, over its weights"
    for number, content in enumerate((None, '', 'hello', 'epoch,train_loss\n', '\0,,,\n"', 'epoch,train_loss\n2,.5\n')):
        folder = shutil.copytree(finished[0], tmp_path/str(number))
        if content is None: (folder/'history.csv').unlink()
        else: (folder/'history.csv').write_text(content)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError, match='history.csv.* in a new folder'): train_model(dataset, split, folder, TrainConfig(**TINY), resume=True, progress=False)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

@pytest.mark.parametrize('rows', ['{}', '[1]', '[{"epoch": 0}]', '[{"epoch": 2, "valid_auroc": 0.5}]', 'x'])
def test_a_checkpoint_with_an_odd_history(tmp_path, rows):
    (tmp_path/'last.safetensors').write_bytes(safetensors.torch.save({'a': torch.zeros(1)}, metadata={'rows': rows}))
    with pytest.raises(UserError, match='last.safetensors cannot be read'): model_runs.checkpoint_rows(tmp_path/'last.safetensors')

def test_a_checkpoint_of_another_model(tmp_path):
    model = torch.nn.Linear(2, 2)
    (tmp_path/'last.safetensors').write_bytes(safetensors.torch.save({'model.weight': torch.zeros(3, 3)}, metadata={'rows': '[]'}))
    with pytest.raises(UserError, match='is of another model'): model_runs.load_checkpoint(tmp_path/'last.safetensors', model, None)

@pytest.mark.parametrize('config', [None, 'x', {'model': {'branches': 3}}, {'model': 'small'}, {'epochs': '3'}])
def test_an_odd_record_of_a_run_is_a_sentence(config):
    with pytest.raises(UserError): model_runs.in_todays_names({'format': 'chestnb-2', 'config': config})
