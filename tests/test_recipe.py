"""The levers of the recipe: losses of branches, average of weights, smoothing, mixing, frozen epochs; each alone, and all of them through an interruption."""
import importlib.util, json, math, sys
import numpy as np, pandas as pd, pytest, torch
from dataclasses import asdict, replace
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from chestnb.core.errors import UserError
from chestnb.commands.pipeline import demo_configs
from chestnb.data.augment import XrayAugment
from chestnb.data.dataset import ChestDataset
from chestnb.data.parts import images_in
from chestnb.evaluation.metrics import macro_auroc
from chestnb.model.arguments import arguments_of, check_arguments
from chestnb.model.callbacks import averaged, AverageWeights, BranchLoss, FusionGradient, recipe_callbacks
from chestnb.model.config import config_from_dict, config_from_options, MODELS, SMALL_FUSION, TrainConfig
from chestnb.model.fusion import FusionModel
from chestnb.model.learner import first_model, group_rates, make_learner
from chestnb.model.losses import make_loss
from chestnb.model.optimizer import freeze_stages, fusion_parameter_groups, stages_of_branches
from chestnb.model.predict import predict
from chestnb.model.runs import CHECKPOINT, load_model, open_run, run_record
from chestnb.model.train import train_model

VIEWS = SMALL_FUSION | dict(reduced_channels=8, views=['whole', 'lungs'], branch_heads=True, answer='mean')
TINY = dict(model=VIEWS, image_size=32, batch_size=16, epochs=3, device='cpu')
LEVERS = TINY | dict(model=VIEWS | dict(branch_dropout=.2, dropout=.1), average_weights=.9, label_smoothing=.1, mixup=.4, frozen_epochs=1, augment_strength=1.5, tta=3)


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


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


class Gradients(Callback):
    "Keeps the gradients of a step: of the branches with their pointwise convolutions, and of what joins them."
    order = 95
    def before_step(self):
        model = self.learn.model
        self.branches = [p.grad.clone() for p in [*model.branches.parameters(), *model.reduce.parameters()] if p.grad is not None]
        self.joined = [p.grad.clone() for p in [*model.attention.parameters(), *model.head.parameters()]]


def gradients(dataset, split, share, weight=.5, fusion_weight=1.):
    "Of the first step, with the fusion's loss scaled by `fusion_weight`."
    class Scale(Callback):
        order = -50
        def after_loss(self):
            if self.training: self.learn.loss_grad = self.learn.loss_grad*fusion_weight
    kept = Gradients()
    class Stop(Callback):
        order = 99
        def after_batch(self):
            if self.training: raise CancelFitException
    fit(learner(dataset, split, fusion_gradient=share, branch_loss=weight, augment=False), callbacks=[Scale(), kept, Stop()])
    return kept


def test_without_the_fusions_gradient_branches_learn_from_their_own_heads_alone(dataset, split):
    alone, louder, shared = (gradients(dataset, split, share, fusion_weight=w) for share, w in ((0., 1.), (0., 7.), (1., 1.)))
    assert alone.branches and all(torch.equal(a, b) for a, b in zip(alone.branches, louder.branches))
    assert any(not torch.allclose(a, b) for a, b in zip(alone.branches, shared.branches))
    for a, b, c in zip(alone.joined, louder.joined, shared.joined): assert a.any() and torch.allclose(7*a, b, rtol=1e-4, atol=1e-6) and torch.allclose(a, c, rtol=1e-4, atol=1e-7)


def test_the_fusions_gradient_is_held_back_only_while_training(dataset, split):
    learn = fit(learner(dataset, split, fusion_gradient=0.))
    assert learn.model.fusion_gradient == 1. and any(isinstance(c, FusionGradient) for c in learn.cbs)
    assert recipe_callbacks(TrainConfig(fusion_gradient=0.)) == [] # one head: nothing to hold back from
    bare = learner(dataset, split, model=SMALL_FUSION | dict(reduced_channels=8))
    with pytest.raises(UserError, match='branch_heads=True'): fit(bare, callbacks=[FusionGradient(0.)])


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


@pytest.mark.parametrize('changes', [dict(average_weights=1.), dict(branch_loss=-1), dict(label_smoothing=1), dict(mixup=-.1), dict(frozen_epochs=3), dict(tta=0), dict(tta=8), dict(augment_strength=0),
                                     dict(fusion_gradient=1.1), dict(fusion_gradient=-.1), dict(fusion_gradient=0, branch_loss=0, model=VIEWS | dict(answer='fusion'))])
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
    new = ('augment_strength', 'branch_loss', 'average_weights', 'label_smoothing', 'mixup', 'frozen_epochs', 'tta', 'fusion_gradient')
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


# rates by stage, and a run that begins where another ended

def test_every_stage_has_its_own_rate(dataset, split):
    learn = learner(dataset, split, stage_decay=.5)
    learn.create_opt()
    levels, depth = learn.opt.param_lists, max(len(branch.stage_parameters()) for branch in learn.model.branches)
    assert len(levels) == depth + 1 and sum(map(len, levels)) == len(list(learn.model.parameters()))
    assert np.allclose(group_rates(TrainConfig(**TINY, stage_decay=.5), depth + 1), [3e-3*.5**i for i in reversed(range(depth))] + [3e-3])
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model.branches.parameters() if p.ndim > 1) and learn.model.head.weight.requires_grad


def test_rates_by_stage_leave_out_what_is_frozen(dataset, split):
    model = make_learner(dataset, split, TrainConfig(**TINY)).model
    model.config['weights'] = ['package:some', 'package:some'] # as if both branches had come with trained weights
    whole = fusion_parameter_groups(model, by_stage=True)
    some = fusion_parameter_groups(freeze_stages(model, 1), by_stage=True)
    assert len(some) < len(whole) and sum(map(len, some)) + len(model.frozen) == sum(map(len, whole))


def test_branches_of_unequal_depth_share_their_last_stage():
    model = FusionModel(('test_resnet', 'test_vit'), reduced_channels=8, branch_stages=[-2, -1])
    stages = [branch.stage_parameters() for branch in model.branches]
    together = stages_of_branches(model)
    assert len(stages[0]) != len(stages[1]) and len(together) == max(map(len, stages))
    assert {id(p) for own in stages for p in own[-1]} == set(map(id, together[-1]))


def test_decayed_rates_move_the_first_stage_least(dataset, split, tmp_path):
    config = TrainConfig(**TINY | dict(epochs=1), stage_decay=1e-3)
    before = first_model(dataset, split, config)
    after = train_model(dataset, split, tmp_path/'run', config, progress=False)
    moved = [[max((a - b).abs().max().item() for a, b in zip(*pair) if a.ndim > 1) for pair in zip(*(branch.stage_parameters() for branch in branches))]
             for branches in zip(before.branches, after.branches)]
    assert all(own[0] < own[-1]/100 for own in moved)


def test_stage_decay_is_resumed_and_refused_when_impossible(dataset, split, tmp_path):
    config, n = TrainConfig(**TINY, stage_decay=.5), []
    with pytest.raises(KeyboardInterrupt): train_model(dataset, split, tmp_path/'cut', config, progress=False, on_epoch=lambda row: n.append(row) or interrupt(len(n)))
    again, whole = train_model(dataset, split, tmp_path/'cut', config, resume=True, progress=False), train_model(dataset, split, tmp_path/'whole', config, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), whole.state_dict().values()))
    for wrong in (0, 1.5, -1):
        with pytest.raises(UserError, match='stage_decay is .*a share between 0 and 1'): TrainConfig(stage_decay=wrong).check()


def interrupt(n):
    if n == 2: raise KeyboardInterrupt


def test_a_run_begins_where_another_ended(dataset, split, tmp_path):
    first = train_model(dataset, split, tmp_path/'first', TrainConfig(**TINY | dict(epochs=1)), progress=False)
    weights = [f'run:{tmp_path}/first#{i}' for i in range(2)]
    config = TrainConfig(**TINY | dict(model=VIEWS | dict(weights=weights), epochs=1))
    begun = first_model(dataset, split, config)
    for old, new in zip(first.branches, begun.branches):
        assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values())) and old.scale == new.scale
    assert not torch.equal(first.head.weight, begun.head.weight) and group_rates(config)[0] < group_rates(config)[1]
    second = train_model(dataset, split, tmp_path/'second', config, progress=False)
    used = json.loads((tmp_path/'second/config.json').read_text())['weights_used']
    assert [len(u['sha256']) for u in used] == [64, 64] and used[0]['source'].startswith('branch 0 of a run on ')
    (tmp_path/'first').rename(tmp_path/'elsewhere') # a finished run needs what it began with no longer
    assert torch.equal(load_model(tmp_path/'second').head.weight, second.head.weight)


@pytest.mark.parametrize('weights, message', [('run:{}#2', r'has 2 branch\(es\)'), ('run:{}/none', 'has no model.json'), ('{}/model.safetensors', "weights='run:"), ('run:{}#1', "belong to 'test_byobnet'")])
def test_a_run_that_cannot_give_its_branch_says_why(tmp_path, weights, message):
    from chestnb.model.runs import save_model
    save_model(FusionModel(**SMALL_FUSION), tmp_path)
    with pytest.raises(UserError, match=message): FusionModel(('test_resnet',), weights=weights.format(tmp_path))


def test_a_run_that_was_cut_short_is_refused(tmp_path):
    from chestnb.model.runs import save_model
    save_model(FusionModel(('test_resnet',), reduced_channels=8, branch_stages=-2), tmp_path)
    with pytest.raises(UserError, match='cut at an earlier stage'): FusionModel(('test_resnet',), weights=f'run:{tmp_path}')
    assert FusionModel(('test_resnet',), reduced_channels=8, branch_stages=-2, weights=f'run:{tmp_path}').branches[0].stage == -2
    (tmp_path/'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(UserError, match='is cut off'): FusionModel(('test_resnet',), branch_stages=-2, weights=f'run:{tmp_path}')


def ablation(root):
    spec = importlib.util.spec_from_file_location('ablation', root/'benchmarks/ablation.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['ablation'] = module # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_row_of_the_ablation_is_a_possible_training(root):
    made = ablation(root)
    for start in (replace(MODELS['two_view'], **made.AT_REST), replace(MODELS['two_view'], **made.AT_REST | dict(image_size=112, epochs=6))):
        for name, row in made.ROWS.items():
            assert row.before is None or row.before in list(made.ROWS)[:list(made.ROWS).index(name)], name
            config = made.recipe(name, start).check()
            check_arguments(arguments_of(config.model))
    folders = [made.folder_of(root, name) for name, row in made.ROWS.items() if row.trains]
    assert len(set(folders)) == len(folders) and made.folder_of(root, 'test-time augmentation').name == 'first_stages_frozen'


def test_the_last_epoch_is_read_from_the_histories(root, tmp_path):
    made = ablation(root)
    for seed, curve in enumerate(([.6, .7, .69], [.5, .6, .65])):
        folder = tmp_path/f'first_stages_frozen/seed{seed}'
        folder.mkdir(parents=True)
        pd.DataFrame({'epoch': [1, 2, 3], 'valid_auroc': curve}).to_csv(folder/'history.csv', index=False)
    row = made.last_epoch_row('the last epoch, not the best', tmp_path, [0, 1], 3.)
    assert row['difference'] == pytest.approx(-.005) and row['valid_auroc'] == pytest.approx(.67) and row['shown'] == '-0.005' and 'at most' in row['verdict']


@pytest.mark.parametrize('changes, says', [(dict(mixup=math.inf), 'mixup is inf; expected a number'), (dict(weight_decay=math.inf), 'weight_decay is inf'), (dict(branch_loss=math.inf), 'branch_loss is inf'),
                                           (dict(epochs='3'), "epochs is '3'; expected a whole number"), (dict(tta=1.5), 'tta is 1.5; expected a whole number'), (dict(batch_size=True), 'batch_size is True'),
                                           (dict(augment='no'), "augment is 'no'; expected True or False"), (dict(num_workers='2'), "num_workers is '2'; expected a whole number or None"),
                                           (dict(image_size=1_000_000), 'image_size is 1000000; expected 32 to 2048 pixels'), (dict(tta=99), 'TrainConfig, or with the option --tta')])
def test_what_is_no_number_or_too_large_is_refused_with_the_place_to_change_it(changes, says):
    with pytest.raises(UserError, match=says): TrainConfig(**changes).check()


def test_numpys_numbers_are_numbers():
    config = TrainConfig(epochs=np.int64(3), mixup=np.float32(.5), augment=np.bool_(False)).check()
    assert json.loads(json.dumps(vars(config)))['epochs'] == 3 and (config.mixup, config.augment) == (.5, False)


@pytest.mark.parametrize('asked, says', [(dict(fusion_gradient=0.), 'branch_heads yes'), (dict(branch_loss=2.), 'branch_heads yes'), (dict(frozen_stages=2), 'trained weights'),
                                         (dict(backbone_rate=.5), 'trained weights'), (dict(augment=False, augment_strength=2.), 'augmentation')])
def test_a_choice_that_would_change_nothing_is_refused(asked, says):
    name = list(asked)[-1]
    with pytest.raises(UserError, match=f'{name} .* would change nothing: it needs .*{says}'): config_from_options(**asked)


def test_a_choice_that_counts_or_is_the_usual_one_is_taken():
    assert config_from_options(branch_heads=True, fusion_gradient=.5, branch_loss=2.).fusion_gradient == .5
    assert config_from_options(fusion_gradient=1., frozen_stages=0, branch_loss=.5).frozen_stages == 0
    assert config_from_options('two_view', weights='none', frozen_stages=0).model['weights'] == 'none'
