"""The levers of the recipe: losses of branches, average of weights, smoothing, mixing, frozen epochs; each alone, and all of them through an interruption."""
import json, math
import numpy as np, pandas as pd, pytest, torch
from dataclasses import asdict
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from chestnb.core.errors import UserError
from chestnb.commands.pipeline import demo_configs
from chestnb.data.augment import XrayAugment
from chestnb.data.dataset import ChestDataset
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split
from chestnb.evaluation.metrics import macro_auroc
from chestnb.model.callbacks import averaged, AverageWeights, BranchLoss, recipe_callbacks
from chestnb.model.config import config_from_dict, config_from_options, MODELS, SMALL_FUSION, TrainConfig
from chestnb.model.learner import make_learner
from chestnb.model.losses import make_loss
from chestnb.model.predict import predict
from chestnb.model.runs import CHECKPOINT, load_model, open_run, run_record
from chestnb.model.train import train_model

VIEWS = SMALL_FUSION | dict(reduced_channels=8, views=['whole', 'lungs'], branch_heads=True, answer='mean')
TINY = dict(model=VIEWS, image_size=32, batch_size=16, epochs=3, device='cpu')
LEVERS = TINY | dict(model=VIEWS | dict(branch_dropout=.2, dropout=.1), average_weights=.9, label_smoothing=.1, mixup=.4, frozen_epochs=1, augment_strength=1.5, tta=3)


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


@pytest.fixture(scope='module')
def split(dataset):
    whole = patient_split(dataset.table)
    return pd.concat([whole[whole.part == part].head(n) for part, n in (('train', 64), ('valid', 40))])


def learner(dataset, split, **changes): return make_learner(dataset, split, TrainConfig(**TINY | changes))


def fit(learn, epochs=1, callbacks=()):
    with learn.no_logging(), learn.no_bar(): learn.fit(epochs, cbs=callbacks)
    return learn


class Steps(Callback):
    "Keeps what a step left."
    order = 95
    def __init__(self, what): self.what, self.kept = what, []
    def after_loss(self):
        if self.what == 'loss' and self.training: self.kept.append((float(self.loss), float(self.loss_grad), self.learn.model.branch_logits.detach().clone(), self.yb[0].clone()))
    def after_step(self):
        if self.what == 'weights': self.kept.append({name: t.clone() for name, t in self.learn.model.state_dict().items()})


def test_no_lever_no_callback(): assert recipe_callbacks(TrainConfig()) == [] and recipe_callbacks(TrainConfig(branch_loss=.9)) == []


def test_branch_losses_are_added_and_not_recorded(dataset, split):
    steps, plain = Steps('loss'), make_loss('bce')
    learn = fit(learner(dataset, split, branch_loss=.25), callbacks=[steps])
    assert steps.kept
    for loss, minimised, branches, targets in steps.kept:
        own = np.mean([float(plain(branches[:, i], targets)) for i in range(2)])
        assert minimised == pytest.approx(loss + .25*own, rel=1e-5)
    assert learn.recorder.metric_names[1] == 'train_loss' and learn.recorder.log[1] == pytest.approx(np.mean([loss for loss, *_ in steps.kept]), rel=1e-4)


def test_without_a_weight_heads_learn_nothing(dataset, split):
    learn = learner(dataset, split, model=VIEWS | dict(answer='fusion'), branch_loss=0., weight_decay=0.)
    before = [head.weight.clone() for head in learn.model.branch_heads]
    fit(learn)
    assert all(torch.equal(head.weight, own) for head, own in zip(learn.model.branch_heads, before))


def test_accumulated_gradients_divide_both_losses(dataset, split):
    learn, seen = learner(dataset, split), []
    class See(Callback):
        order = 96
        def after_loss(self):
            if self.training: seen.append((float(self.loss), float(self.loss_grad), float(self.branch_loss_of)))
        @property
        def branch_loss_of(self): return torch.stack([self.loss_func(own, *self.yb) for own in self.learn.model.branch_logits.unbind(1)]).mean()
    fit(learn, callbacks=[GradientAccumulation(32), See()])
    for loss, minimised, own in seen: assert minimised == pytest.approx((loss + .5*own)*16/32, rel=1e-4)


def test_branch_loss_on_a_model_without_heads_says_so(dataset, split):
    with pytest.raises(UserError, match='branch_heads=True'):
        fit(learner(dataset, split, model=SMALL_FUSION | dict(reduced_channels=8)), callbacks=[BranchLoss()])


def test_the_average_is_the_average(dataset, split):
    "Against the sum by hand, of weights and of batch statistics."
    steps, seen = Steps('weights'), {}
    class Validated(Callback):
        order = 96
        def before_validate(self): seen.update(self.learn.model.state_dict())
    learn = learner(dataset, split, average_weights=.8)
    fit(learn, 2, [steps, Validated()])
    expected = steps.kept[0]
    for n, state in enumerate(steps.kept[1:], start=1):
        stays = min(.8, (1 + n)/(10 + n))   # quick at first, so that the untrained weights fade
        expected = {name: t if not t.is_floating_point() else stays*t + (1 - stays)*state[name] for name, t in expected.items()}
    for name, t in learn.model.state_dict().items():
        if t.is_floating_point():
            torch.testing.assert_close(t, expected[name], rtol=1e-4, atol=1e-6)
            assert torch.equal(t, seen[name])   # what was validated last is what is left
    assert averaged(learn) is None and not torch.equal(learn.model.head.weight, steps.kept[-1]['head.weight'])


def test_an_average_leaves_lr_find_and_a_learner_that_travels_alone(dataset, split, tmp_path):
    learn = learner(dataset, split, average_weights=.9)
    learn.path = tmp_path
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    with learn.no_logging(), learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    assert all(torch.equal(t, before[name]) for name, t in learn.model.state_dict().items())
    fit(learn)
    learn.export(tmp_path/'learner.pkl')
    again = load_learner(tmp_path/'learner.pkl')
    assert torch.equal(again.model.head.weight, learn.model.head.weight)
    for wrong in (0., 1.): pytest.raises(UserError, AverageWeights, wrong)


def test_a_fit_that_is_cancelled_within_a_validation_trains_on_with_its_own_weights(dataset, split):
    from fastai.callback.core import CancelFitException
    class Cancel(Callback):
        order = 97
        def after_pred(self):
            if not self.training: raise CancelFitException
    learn = fit(learner(dataset, split, average_weights=.9), callbacks=[Cancel()])
    model = learn.model
    fit(learn)
    assert learn.model is model and averaged(learn) is None


def test_what_is_saved_is_the_average_and_the_checkpoint_has_both(dataset, split, tmp_path):
    class Stop(Exception): pass
    def stop(row): raise Stop('now')
    config = TrainConfig(**TINY | dict(average_weights=.9))
    with pytest.raises(Stop): train_model(dataset, split, tmp_path/'cut', config, progress=False, on_epoch=stop)
    from safetensors.torch import load_file
    kept, best = load_file(tmp_path/'cut'/CHECKPOINT), load_file(tmp_path/'cut'/'model.safetensors')
    assert torch.equal(kept['average.module.head.weight'], best['head.weight']) and not torch.equal(kept['model.head.weight'], best['head.weight'])
    model = train_model(dataset, split, tmp_path/'whole', config, progress=False)
    names = images_in(split, 'valid')
    scored = macro_auroc(dataset.targets(names), predict(model, dataset, names, progress=False).drop(columns='Image Index').to_numpy())
    assert scored == pytest.approx(model.info['valid_auroc'], abs=1e-6)


def test_all_levers_and_an_interruption_give_the_same_digits(dataset, split, tmp_path):
    config = TrainConfig(**LEVERS)
    whole = train_model(dataset, split, tmp_path/'whole', config, progress=False)
    for stop_after in (1, 2):
        def stop(row):
            if row['epoch'] == stop_after: raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt): train_model(dataset, split, tmp_path/f'cut {stop_after}', config, progress=False, on_epoch=stop)
        again = train_model(dataset, split, tmp_path/f'cut {stop_after}', config, resume=True, progress=False)
        a, b = (pd.read_csv(tmp_path/name/'history.csv').drop(columns='seconds') for name in ('whole', f'cut {stop_after}'))
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        assert all(torch.equal(t, own) for t, own in zip(whole.state_dict().values(), again.state_dict().values()))
    assert whole.info['tta'] == 3


def test_kernels_of_branches_wait_and_then_learn(dataset, split):
    learn = learner(dataset, split, frozen_epochs=1, epochs=3)
    def kernels(): return [p.detach().clone() for p in learn.model.branches.parameters() if p.ndim > 1]
    first, head = kernels(), learn.model.head.weight.clone()
    fit(learn)
    assert all(map(torch.equal, first, kernels())) and not torch.equal(learn.model.head.weight, head)
    fit(learn, 2)
    assert not any(map(torch.equal, first, kernels()))


def test_smoothing_is_the_formula_and_leaves_unknown_labels_out():
    logits, targets = torch.randn(6, 14), torch.randint(0, 2, (6, 14)).float()
    targets[0, 0] = math.nan
    known = targets.isfinite()
    for name in ('bce', 'weighted_bce'):
        smooth, plain = make_loss(name, [3.]*14, .2), make_loss(name, [3.]*14)
        moved = torch.where(targets == 1, .9, .1).where(known, targets)
        assert smooth(logits, targets) == pytest.approx(float(plain(logits, moved)), rel=1e-5)
    assert make_loss('bce', label_smoothing=0)(logits, targets) == make_loss('bce')(logits, targets)
    for wrong in (-.1, 1, 2): pytest.raises(UserError, make_loss, 'bce', None, wrong)


def test_mixed_unknown_labels_stay_unknown(dataset, split):
    steps = Steps('loss')
    learn = learner(dataset, split, mixup=.4)
    class Forget(Callback):
        order = -5
        def before_batch(self):
            if self.training: self.learn.yb[0][:, 0] = math.nan
    fit(learn, callbacks=[Forget(), steps])
    for loss, minimised, _, targets in steps.kept: assert math.isfinite(loss) and math.isfinite(minimised) and targets[:, 0].isnan().all()
    assert any(((t > 0) & (t < 1)).any() for *_, t in steps.kept)


def test_the_strength_reaches_the_augmentation(dataset, split):
    strengths = [next(t.strength for t in learner(dataset, split, augment_strength=s).dls.train.after_batch.fs if isinstance(t, XrayAugment)) for s in (1., 2.5)]
    assert strengths == [1., 2.5]


@pytest.mark.parametrize('changes', [dict(average_weights=1.), dict(branch_loss=-1), dict(label_smoothing=1), dict(mixup=-.1), dict(frozen_epochs=3), dict(tta=0), dict(tta=8), dict(augment_strength=0)])
def test_impossible_levers_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))): TrainConfig(**TINY | changes).check()


def test_options_reach_the_model():
    config = config_from_options(views='whole,lungs', branch_heads=True, answer='mean', branch_dropout=.1, average_weights=.99, tta=7)
    assert config.model == SMALL_FUSION | dict(views=['whole', 'lungs'], branch_heads=True, answer='mean', branch_dropout=.1) and (config.average_weights, config.tta) == (.99, 7)
    with pytest.raises(UserError, match='branch_loss 0'): config_from_options('two_view', branch_loss=0)
    with pytest.raises(UserError, match='2 views'): config_from_options(branches='resnet18,resnet18,resnet18', views='whole,lungs')
    assert config_from_options('two_view', epochs=2).model == MODELS['two_view'].model


def test_a_run_from_before_there_were_views_goes_on(dataset, split, tmp_path):
    "config.json as it was written then, with lung_crop and without the new names"
    config = TrainConfig(model={key: value for key, value in SMALL_FUSION.items() if key not in ('views', 'branch_heads', 'branch_dropout', 'answer')})
    record = json.loads(json.dumps(run_record(dataset, split, config)))
    new = ('augment_strength', 'branch_loss', 'average_weights', 'label_smoothing', 'mixup', 'frozen_epochs', 'tta')
    old = record | {'config': {key: value for key, value in record['config'].items() if key not in new} | {'lung_crop': False}}
    (tmp_path/'config.json').write_text(json.dumps(old))
    (tmp_path/'history.csv').write_text('epoch,valid_auroc\n1,.5\n')
    (tmp_path/'train_val_auc.png').touch()
    assert len(open_run(tmp_path, run_record(dataset, split, TrainConfig()), resume=True)) == 1
    with pytest.raises(UserError, match='views'): open_run(tmp_path, run_record(dataset, split, TrainConfig(model=SMALL_FUSION | dict(views=['lungs']))), resume=True)
    (tmp_path/'config.json').write_text(json.dumps(old | {'config': old['config'] | {'lung_crop': True}}))
    assert len(open_run(tmp_path, run_record(dataset, split, TrainConfig(model=SMALL_FUSION | dict(views=['lungs']))), resume=True)) == 1
    assert config_from_dict(old['config']).model['views'] == ['whole']


def test_a_view_that_nobody_defined_is_refused_before_anything_is_written(dataset, split, tmp_path):
    with pytest.raises(UserError, match="no view 'lung'; there are whole, lungs"):
        train_model(dataset, split, tmp_path/'run', TrainConfig(**TINY | dict(model=VIEWS | dict(views=['whole', 'lung']))), progress=False)
    assert not (tmp_path/'run').exists()


def test_a_view_of_ones_own_trains_and_predicts(dataset, split, tmp_path):
    from chestnb.data import views
    from chestnb.data.squares import Crop
    try:
        views.define_view('left_half', lambda data: Crop('left_half', {'share': .5}, lambda name: (0, 0, 1, 2, 2, 2)))
        config = TrainConfig(**TINY | dict(model=VIEWS | dict(views=['whole', 'left_half']), epochs=1))
        model = train_model(dataset, split, tmp_path/'run', config, progress=False)
        names = images_in(split, 'valid')
        table = predict(load_model(tmp_path/'run'), dataset, names, progress=False)
        assert table.equals(predict(model, dataset, names, progress=False)) and table.attrs['shown_whole'] == []
    finally: views.VIEWS.pop('left_half', None)
    with pytest.raises(UserError, match="no view 'left_half'"): predict(model, dataset, names, progress=False)


def test_the_demo_has_a_name_for_every_branch():
    names = [*demo_configs(MODELS['two_view'])]
    assert names == ['fusion', 'tf_efficientnet_lite0 on whole alone', 'tf_efficientnet_lite0 on lungs alone']
    twins = demo_configs(TrainConfig(model=SMALL_FUSION | dict(branches=['test_resnet']*3, branch_stages=-1)))
    assert len(twins) == 4 and all(len(c.model['branches']) == 1 for name, c in twins.items() if name != 'fusion')
    assert [*demo_configs(TrainConfig())] == ['fusion', 'test_resnet alone', 'test_byobnet alone']
