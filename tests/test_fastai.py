"""The Learner is a fastai Learner: each thing that a fastai user reaches for, once, on a tiny model and few synthetic images."""
import subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from chestnb.data.dataset import ChestDataset
from chestnb.data.parts import images_in
from chestnb.model.config import TrainConfig
from chestnb.model.learner import make_learner
from chestnb.model.optimizer import LevelAdamW

TINY = dict(model=dict(branches=['test_resnet', 'test_byobnet'], reduced_channels=8), image_size=32, batch_size=16)


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


@pytest.fixture
def learn(dataset, split, tmp_path):
    learn = make_learner(dataset, split, TrainConfig(**TINY))
    learn.path = tmp_path
    return learn


def quiet_fit(learn, epochs=1, **arguments):
    with learn.no_logging(): learn.fit(epochs, **arguments)
    return learn


def weights_of(model): return {name: t.clone() for name, t in model.named_parameters()}
def changed(model, before): return {name for name, t in model.named_parameters() if not torch.equal(t, before[name])}


def test_default_callbacks_are_there(learn):
    assert {'recorder', 'train_eval', 'cast_to_tensor', 'progress'} <= {cb.name for cb in learn.cbs}
    assert [cb.name for cb in learn.cbs].count('recorder') == 1 and learn.recorder.name == 'recorder'


def test_recorder_logs_loss_and_auroc_of_both_parts(learn, dataset, split):
    quiet_fit(learn, 2)
    assert list(learn.recorder.metric_names) == ['epoch', 'train_loss', 'train_auroc', 'valid_loss', 'valid_auroc', 'time']
    assert len(learn.recorder.values) == 2 and all(np.isfinite(row).all() for row in learn.recorder.values)
    assert len(learn.recorder.losses) == 8 and all(isinstance(loss, float) for loss in learn.recorder.losses)
    last = learn.recorder.values[-1]
    with learn.no_logging(): checked = learn.validate()
    assert np.allclose(checked, last[2:], atol=1e-6) # validate gives the validation loss and AUROC that were logged
    assert learn.validate(ds_idx=0)[1] > 0


def test_freeze_freezes_the_branches_and_leaves_the_whole_head_learning(learn):
    "0.1 froze the head's weights and left its biases"
    learn.freeze()
    before = weights_of(learn.model)
    quiet_fit(learn, lr=1e-2)
    moved = changed(learn.model, before)
    new = {name for name in before if not name.startswith('branches.')}
    norms = {f'branches.{name}.{p}' for name, m in learn.model.branches.named_modules() if isinstance(m, torch.nn.BatchNorm2d) for p in ('weight', 'bias')}
    assert new <= moved <= new | norms and {'head.weight', 'head.bias'} <= moved # fastai lets normalisation learn (train_bn)
    learn.unfreeze()
    before = weights_of(learn.model)
    quiet_fit(learn, lr=1e-2)
    assert len(changed(learn.model, before) - new - norms) > 5


def test_two_levels_take_slices_and_only_kernels_decay(learn):
    learn.create_opt()
    assert isinstance(learn.opt, LevelAdamW) and len(learn.opt.param_lists) == 2
    assert sum(map(len, learn.opt.param_lists)) == len(list(learn.model.parameters()))
    learn.opt.set_hypers(lr=slice(1e-5, 1e-3), wd=.3)
    rates = {id(p): (group['lr'], group['weight_decay']) for group in learn.opt.opt.param_groups for p in group['params']}
    for name, p in learn.model.named_parameters():
        assert rates[id(p)] == pytest.approx((1e-5 if name.startswith('branches.') else 1e-3, .3 if p.ndim > 1 else 0.)), name


def test_fine_tune(learn):
    before = weights_of(learn.model)
    with learn.no_logging(): learn.fine_tune(1, base_lr=1e-2)
    assert len(changed(learn.model, before)) == len(before)
    assert all(p.requires_grad for p in learn.model.parameters())


def test_fit_one_cycle_follows_the_cycle(learn):
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    rates = learn.recorder.hps['lr']
    assert len(rates) == 8 and max(rates) == pytest.approx(1e-2, rel=.05) and rates[0] < 1e-3 > rates[-1]


def test_lr_find_suggests_a_rate_and_leaves_the_model_as_it_was(learn):
    "0.1: AttributeError: smooth_loss"
    before = weights_of(learn.model)
    found = learn.lr_find(num_it=30, show_plot=False)
    assert 1e-7 < found.valley < 10 and not changed(learn.model, before)
    assert len(learn.recorder.lrs) == len(learn.recorder.losses) > 10
    learn.recorder.plot_lr_find(); learn.recorder.plot_loss(skip_start=0, with_valid=False)


def test_get_preds_and_predict_give_probabilities(learn, dataset, split):
    "0.1 gave logits"
    probabilities, targets = learn.get_preds()
    names = images_in(split, 'valid')
    assert probabilities.shape == targets.shape == (40, 14) and 0 <= probabilities.min() and probabilities.max() <= 1
    assert np.allclose(probabilities.mean(0), dataset.targets(images_in(split, 'train')).mean(0), atol=.1) # the prior
    with torch.no_grad(): by_hand = learn.model.eval()(learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)).sigmoid()
    assert torch.allclose(probabilities[:16], by_hand, atol=1e-6)
    assert np.array_equal(targets, dataset.targets(names))
    decoded, decided, one = learn.predict(names[3])
    assert torch.allclose(one, probabilities[3], atol=1e-5)
    assert list(decoded) == [f for f, p in zip(dataset.findings, one) if p > .5] and torch.equal(decided.as_subclass(torch.Tensor).bool(), (one > .5).as_subclass(torch.Tensor))


def test_losses_of_single_images(learn):
    _, _, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (40,) and losses.isfinite().all()
    assert losses.mean().item() == pytest.approx(learn.validate()[0], abs=1e-5)


def test_early_stopping(learn):
    quiet_fit(learn, 5, cbs=EarlyStoppingCallback('valid_auroc', min_delta=2., patience=1))
    assert len(learn.recorder.values) < 5


def test_save_model_keeps_the_best_and_loads_it(learn, tmp_path):
    keep = SaveModelCallback('valid_loss', fname='best')
    quiet_fit(learn, 2, cbs=keep)
    best = min(row[2] for row in learn.recorder.values)
    assert (tmp_path/'models/best.pth').exists() and keep.best == pytest.approx(best)
    assert learn.validate()[0] == pytest.approx(best, abs=1e-5)


def test_reduce_lr_on_plateau(learn):
    quiet_fit(learn, 3, lr=1e-3, cbs=ReduceLROnPlateau('valid_loss', min_delta=100., patience=1))
    assert learn.opt.hypers[-1]['lr'] <= 1.01e-4


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_images(learn, mix):
    seen = []
    class Look(Callback):
        def after_loss(self):
            if self.training: seen.append(self.yb[0].clone())
    quiet_fit(learn, 1, cbs=[mix(), Look()])
    targets = torch.cat(seen)
    assert ((targets > 0) & (targets < 1)).any() and targets.min() >= 0 and targets.max() <= 1
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_mixing_with_unknown_labels_stays_unknown(learn):
    class Forget(Callback):
        order = -1
        def before_batch(self): self.yb[0][0] = float('nan')
    quiet_fit(learn, 1, cbs=[Forget(), MixUp()])
    assert np.isfinite(learn.recorder.values[-1]).all()
    assert all(t.isfinite().all() for t in learn.model.parameters())


def test_gradient_accumulation_makes_fewer_steps(learn):
    steps = []
    class Count(Callback):
        def after_step(self): steps.append(self.train_iter)
    quiet_fit(learn, 2, cbs=[GradientAccumulation(n_acc=32), Count()]) # two batches of 16 a step
    assert len(steps) == 4


def test_average_of_weights(learn):
    "fastai 2.8 has no such callback: a simple one on PyTorch's AveragedModel"
    class EMA(Callback):
        def before_fit(self): self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.5), use_buffers=True)
        def after_step(self): self.averaged.update_parameters(self.model)
        def after_fit(self): self.model.load_state_dict(self.averaged.module.state_dict())
    ema = EMA()
    before, plain = weights_of(learn.model), {}
    class Last(Callback):
        order = -50
        def after_fit(self): plain.update(weights_of(self.model))
    quiet_fit(learn, 1, lr=1e-2, cbs=[ema, Last()])
    assert len(changed(learn.model, before)) == len(before) == len(changed(learn.model, plain))
    assert np.isfinite(learn.validate()).all()


def test_to_fp16_and_back(learn):
    "On a CPU the callback does nothing but must do no harm; on a GPU it computes in float16"
    learn.to_fp16()
    quiet_fit(learn)
    assert np.isfinite(learn.recorder.values[-1]).all() and any(isinstance(cb, MixedPrecision) for cb in learn.cbs)
    assert learn.get_preds()[0].dtype == torch.float32
    learn.to_fp32()
    assert not any(isinstance(cb, MixedPrecision) for cb in learn.cbs)


def test_the_configured_precision_steps_aside_for_the_users(learn):
    "On a GPU, where the configuration has added one, two would scale the gradients twice"
    from chestnb.model.machine import ConfiguredPrecision
    started = []
    class Noted(ConfiguredPrecision):
        def before_fit(self): super().before_fit(); started.append((self.amp_mode.value, self.run))
    learn.add_cb(Noted(amp_mode='fp16'))
    quiet_fit(learn)
    learn.to_fp16()
    quiet_fit(learn)
    assert started == [('fp16', True), ('fp16', False)] and np.isfinite(learn.recorder.values[-1]).all()
    assert not [cb for cb in learn.to_fp32().cbs if isinstance(cb, MixedPrecision)]


def test_bf16_autocast_gives_nearly_the_same_loss(learn):
    xb, yb = learn.dls.valid.one_batch()
    xb, learn.model = xb.as_subclass(torch.Tensor), learn.model.eval()
    with torch.no_grad():
        exact = learn.loss_func(learn.model(xb), yb)
        with torch.autocast('cpu', dtype=torch.bfloat16): rounded = learn.loss_func(learn.model(xb), yb)
    assert rounded.dtype == torch.float32 and torch.allclose(exact, rounded, rtol=.02) and not torch.equal(exact, rounded)


def test_export_and_load_learner_without_patients(learn, dataset, split, tmp_path):
    names = images_in(split, 'valid')
    expected = learn.predict(names[0])[2]
    learn.export('export.pkl')
    content = (tmp_path/'export.pkl').read_bytes()
    assert not any(name.encode() in content for name in dataset.table['image'])
    again = load_learner(tmp_path/'export.pkl')
    decoded, _, probabilities = again.predict(str(dataset.image_path(names[0])))
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert again.dls.vocab == list(dataset.findings)
    assert np.isfinite(learn.validate()).all() # the exported one goes on


def test_save_and_load(learn, tmp_path):
    quiet_fit(learn)
    before = learn.get_preds()[0]
    learn.save('here')
    quiet_fit(learn, lr=1e-2)
    assert not torch.equal(learn.get_preds()[0], before)
    learn.load('here')
    assert torch.equal(learn.get_preds()[0], before)


def test_show_batch_and_show_results(learn):
    import matplotlib.pyplot as plt
    learn.dls.show_batch(max_n=4)
    assert len([ax for ax in plt.gcf().axes if ax.get_title()]) == 4
    plt.close('all')
    learn.show_results(max_n=6)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    plt.close('all')
    assert len(titles) == 6 and all('\n/ ' in title for title in titles)


def test_top_losses(learn):
    import matplotlib.pyplot as plt
    wrong = Interpretation.from_learner(learn)
    losses, rows = wrong.top_losses(5)
    assert (losses[:-1] >= losses[1:]).all() and losses[0] == wrong.losses.max()
    wrong.plot_top_losses(4)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    plt.close('all')
    assert [title.rsplit('/ ', 1)[1] for title in titles] == [f'{loss:.2f}' for loss in losses[:4]]


def test_test_time_augmentation(learn):
    plain, averaged = learn.get_preds()[0], learn.tta(n=2)[0]
    assert averaged.shape == plain.shape and not torch.allclose(averaged, plain) and 0 <= averaged.min() <= averaged.max() <= 1


def test_a_loader_of_new_images(learn, dataset, split):
    names = images_in(split, 'train')[:5]
    unlabelled = learn.dls.test_dl(names)
    labelled = learn.dls.test_dl(names, with_labels=True)
    assert torch.equal(learn.get_preds(dl=unlabelled)[0], learn.get_preds(dl=labelled)[0])
    assert np.array_equal(learn.get_preds(dl=labelled)[1], dataset.targets(names))


def test_same_seed_same_learner(dataset, split):
    one, other = (quiet_fit(make_learner(dataset, split, TrainConfig(**TINY))) for _ in range(2))
    assert one.recorder.losses == other.recorder.losses


def test_top_losses_are_ours_whatever_was_imported_first():
    "plum took fastai's general `plot_top_losses` where chestnb.data.items had been imported before fastai.interpret"
    code = ('import torch, chestnb.data.items as items, fastai.interpret as interpret; from fastcore.foundation import L;'
            'x, y = items.TensorXray(torch.zeros(1, 1, 8, 8)), items.TensorFindings(torch.zeros(1, 14));'
            'function = interpret.plot_top_losses; function._resolve_pending_registrations();'
            'print(function._resolver.resolve((x, y, L(), L(), y, y)).implementation.__module__)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'chestnb.data.items', done.stderr
