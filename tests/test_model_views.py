"""A model of two views: what each branch sees, what the model answers, its predictions and its maps. Small networks, synthetic images."""
import copy, json, shutil
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from hypothesis import given, settings, strategies as st
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.frames import paste_map
from chestnb.data.masks import write_segmentation
from chestnb.evaluation.localisation import box_mask, box_pairs, box_targets, boxes_on_map
from chestnb.model.answers import answer_of, answers_of, silence_branches
from chestnb.model.base import set_prior
from chestnb.model.choices import ATTENTIONS
from chestnb.model.config import MODELS, REFERENCE_FUSION, SMALL_FUSION, TrainConfig
from chestnb.model.drawing import draw_architecture, layer_table
from chestnb.model.fusion import branch_config, FusionModel
from chestnb.model.layers import split_at_layer, view_channels
from chestnb.model.maps import MAP_METHODS, pair_images, pair_logits, pair_maps, saliency_maps, view_boxes
from chestnb.model.predict import COPIES, image_copy, predict, predict_answers
from chestnb.model.runs import load_model, save_model
from chestnb.model.saliency import evidence_of
from chestnb.model.sanity import cascade_steps, randomised
from chestnb.model.train import train_model

VIEWS = dict(views=['whole', 'lungs'], branch_heads=True, answer='mean')


def build(seed=0, **changes):
    "A small model of two views with random weights and moving statistics that are not 0 and 1."
    torch.manual_seed(seed)
    model = FusionModel(**SMALL_FUSION | dict(reduced_channels=16) | VIEWS | changes)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d): part.running_mean.normal_(0, .1); part.running_var.uniform_(.5, 1.5)
    return model.eval()


def batch(n=3, views=2, side=64, seed=1): return torch.rand(n, views, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def dataset(embedded): return ChestDataset(embedded)


# what the branches see

def test_each_branch_sees_its_own_view():
    model, x = build(), batch()
    changed = x.clone(); changed[:, 1] = 1 - changed[:, 1]
    with torch.no_grad(): (a0, a1), (b0, b1) = model.branch_maps(x), model.branch_maps(changed)
    assert torch.equal(a0, b0) and not torch.equal(a1, b1)
    with torch.no_grad(): alone = model.reduce[1](model.branches[1](x[:, 1:]))
    torch.testing.assert_close(a1, alone, rtol=1e-4, atol=1e-5)


def test_one_view_is_shown_to_all_branches():
    model, x = build(views=['lungs']), batch(views=1)
    twice = build()
    with torch.no_grad(): torch.testing.assert_close(model(x), twice(x.expand(-1, 2, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('changes, message', [
    (dict(branches=['test_resnet']*3), r'there are 2 views \(whole, lungs\) and 3 branches'), (dict(views=[]), 'list of names'),
    (dict(views='lungs'), 'list of names'), (dict(answer=2), "one of 2 branches"), (dict(answer='best'), "must be 'fusion', 'mean'"),
    (dict(answer=True), "must be 'fusion', 'mean'"), (dict(branch_heads=False), 'branch_heads=True'), (dict(branch_dropout=1), 'branch_dropout'),
    (dict(branch_heads='yes'), 'True or False')])
def test_views_and_answers_that_do_not_fit_are_one_sentence(dataset, tmp_path, changes, message):
    shape = SMALL_FUSION | VIEWS | changes | dict(branch_stages=-1)
    with pytest.raises(UserError, match=message): FusionModel(**shape)
    with pytest.raises(UserError, match=message): train_model(dataset, None, tmp_path/'run', TrainConfig(model=shape))
    assert not (tmp_path/'run').exists()


def test_a_batch_of_other_views_is_refused():
    for wrong in (batch(views=1), batch(views=3)):
        with pytest.raises(UserError, match='sees 2 views of each image'): build()(wrong)


def test_a_branch_alone_keeps_its_view():
    config = build().config
    assert [branch_config(config, i)['views'] for i in (0, 1)] == [['whole'], ['lungs']]
    assert branch_config(SMALL_FUSION | dict(views=['lungs']), 1)['views'] == ['lungs']
    alone = FusionModel(**branch_config(config, 1))
    assert not alone.branch_heads and alone.config['answer'] == 'fusion' and len(alone.branches) == 1


# the same digits as before there were views

def test_heads_are_drawn_last_so_that_the_other_first_weights_stay():
    torch.manual_seed(4); plain = FusionModel(**SMALL_FUSION).state_dict()
    torch.manual_seed(4); headed = FusionModel(**SMALL_FUSION | VIEWS).state_dict()
    assert all(torch.equal(t, headed[name]) for name, t in plain.items())
    assert {name.split('.')[0] for name in headed.keys() - plain.keys()} == {'branch_heads'}


def test_the_defaults_are_those_of_one_view():
    for config in (SMALL_FUSION, REFERENCE_FUSION): assert (config['views'], config['branch_heads'], config['answer'], config['branch_dropout']) == (['whole'], False, 'fusion', 0.)
    assert FusionModel(('test_resnet',), reduced_channels=8).config | dict(views=['whole'], branch_heads=False, answer='fusion', branch_dropout=0.) \
        == FusionModel(('test_resnet',), reduced_channels=8).config
    for name, config in MODELS.items(): assert config.check() is config, name


# answers

def test_all_answers_come_from_one_pass():
    model, x = build(), batch()
    with torch.no_grad():
        logits = model.all_logits(x)
        assert logits.shape == (3, 3, 14)
        for answer in ('fusion', 'mean', 0, 1):
            model.config['answer'] = answer
            torch.testing.assert_close(model(x), answer_of(logits, answer))
        torch.testing.assert_close(logits[:, 0], model.classify(model.pool(model.fused_features(x))), rtol=1e-4, atol=1e-5)
        for i, own in enumerate(model.branch_maps(x)): torch.testing.assert_close(logits[:, 1 + i], model.branch_heads[i](own.mean((2, 3))), rtol=1e-4, atol=1e-5)
    assert list(answers_of(model.config)) == ['fusion', 'mean', 'branch 0 (whole)', 'branch 1 (lungs)']


def test_in_training_the_model_gives_the_fusion_and_leaves_the_branches():
    model, x = build().train(), batch()
    out = model(x)
    assert model.branch_logits.shape == (3, 2, 14) and out.shape == (3, 14) and out.requires_grad and model.branch_logits.requires_grad
    kept = copy.deepcopy(model)     # a tensor with a history cannot be copied
    assert kept.branch_logits is None and model.branch_logits is not None


def test_every_head_starts_with_the_prevalence():
    model = set_prior(build(), [.1]*14)
    for head in (model.head, *model.branch_heads): torch.testing.assert_close(head.bias.sigmoid(), torch.full((14,), .1))


@pytest.mark.parametrize('attention', [*ATTENTIONS, 'none'])
def test_every_parameter_learns_with_every_attention(attention):
    model = build(attention=attention).train()
    (model(batch()).square().mean() + model.branch_logits.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_silenced_branches_are_unbiased_and_never_all():
    torch.manual_seed(0)
    maps = silence_branches([torch.ones(20_000, 1, 1, 1) for _ in range(2)], .4)
    loud = torch.stack(maps)[..., 0, 0, 0]
    assert set(loud.unique().tolist()) == {0., 1., 2.} and (loud.sum(0) == 2).all()
    assert abs(float((loud == 0).any(0).float().mean()) - .4) < .02 and (loud.mean(1) - 1).abs().max() < .02


def test_branches_are_silenced_in_training_only():
    model, x = build(branch_dropout=.5), batch(8)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train(); torch.manual_seed(0)
        joined = model.join(model.branch_maps(x))
    silent = torch.stack([joined[:, :16].abs().sum((1, 2, 3)) == 0, joined[:, 16:].abs().sum((1, 2, 3)) == 0])
    assert silent.any() and not silent.all(0).any()


def test_views_can_be_exported_traced_and_compiled():
    model, x = build(), batch()
    with torch.no_grad():
        for made in (torch.export.export(model, (x,)).module(), torch.jit.trace(model, x, check_trace=False), torch.compile(model, backend='eager')):
            torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('attention', ['squeeze_excitation', 'query_and_mean'])
def test_views_go_to_onnx(tmp_path, attention):
    pytest.importorskip('onnx', reason='torch.onnx needs the package onnx, which is not installed')
    pytest.importorskip('onnxscript', reason='torch.onnx needs the package onnxscript, which is not installed')
    model, x = build(attention=attention), batch()
    torch.onnx.export(model, (x,), tmp_path/'model.onnx', dynamo=True)
    assert (tmp_path/'model.onnx').stat().st_size > 100_000
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed, so the exported model cannot be run')
    session = runtime.InferenceSession(tmp_path/'model.onnx')
    with torch.no_grad(): np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], model(x).numpy(), atol=1e-4)


# saved and predicted

def test_a_model_of_views_survives_its_folder(tmp_path):
    model, x = build(), batch()
    save_model(model, tmp_path/'run', {'image_size': 64, 'tta': 3})
    again = load_model(tmp_path/'run')
    assert again.config == model.config and again.info['tta'] == 3
    with torch.no_grad(): torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('lung_crop, views', [(True, ['lungs']), (False, ['whole'])])
def test_a_folder_from_before_there_were_views_is_read(tmp_path, lung_crop, views):
    model = build(views=['whole'], branch_heads=False, answer='fusion')
    save_model(model, tmp_path, {'image_size': 64, 'lung_crop': lung_crop})
    info = json.loads((tmp_path/'model.json').read_text())
    info['model'] = {key: value for key, value in info['model'].items() if key not in ('views', 'branch_heads', 'branch_dropout', 'answer')}
    (tmp_path/'model.json').write_text(json.dumps(info))
    again, x = load_model(tmp_path), batch(views=1)
    assert again.config['views'] == views
    with torch.no_grad(): torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)


def test_predictions_of_all_answers(dataset):
    model, names = build(), dataset.table.image[:5].tolist()
    tables = predict_answers(model, dataset, names, image_size=64, progress=False)
    assert tables['mean'].equals(predict(model, dataset, names, image_size=64, progress=False))
    for name, answer in answers_of(model.config).items(): assert tables[name].equals(predict(model, dataset, names, answer, image_size=64, progress=False))
    seen = torch.tensor(pair_images(model, dataset, pd.DataFrame({'image': names}), image_size=64))
    with torch.no_grad(): np.testing.assert_allclose(tables['mean'].iloc[:, 1:], model(seen).sigmoid(), atol=1e-5)


def test_copies_are_the_same_each_time_and_never_mirrored(dataset):
    model, names = build(), dataset.table.image[:4].tolist()
    a, b = (predict(model, dataset, names, image_size=64, tta=7, progress=False) for _ in range(2))
    assert a.equals(b)
    x = batch(1); x[..., :32] = 0
    for number in range(len(COPIES)): assert image_copy(x, number)[..., 36:].mean() > .3 and image_copy(x, number)[..., :28].max() < 1e-6
    model.info = {'image_size': 64, 'tta': 7}
    assert predict(model, dataset, names, progress=False).equals(a)
    for wrong in (0, 8, 1.5): pytest.raises(UserError, predict, model, dataset, names, tta=wrong, progress=False)


def test_images_that_a_view_cannot_cut_are_counted(dataset, tmp_path):
    names = dataset.table.image[:6].tolist()
    (tmp_path/'images').mkdir()
    for name in names: shutil.copy(dataset.image_path(name), tmp_path/'images'/name)
    shutil.copy(dataset.metadata_path, tmp_path/'data.csv')
    masks = dataset.segmentation
    write_segmentation(masks[masks['image'].isin(names[:4])], tmp_path/'segmentation.csv')
    some, model = ChestDataset(tmp_path, on_mismatch='drop'), build()
    with pytest.warns(UserWarning, match='2 of 6 images have no lung mask in segmentation.csv and are shown whole in the view lungs'):
        table = predict(model, some, names, image_size=64, progress=False)
    assert table.attrs['shown_whole'] == names[4:]


# maps

@pytest.mark.parametrize('layer', ['fused', 0, 1])
def test_two_halves_of_a_model_of_views(layer):
    model, x = build(), batch()
    features, rest = split_at_layer(model, x, layer)
    with torch.no_grad(): torch.testing.assert_close(rest(features), model.all_logits(x)[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('attention', [*ATTENTIONS, 'none'])
def test_evidence_of_the_views_adds_up_to_the_fusions_logit(attention):
    model, x = build(attention=attention), batch()
    parts = sum(evidence_of(model, x, view_channels(model, view)).sum((2, 3)) for view in ('whole', 'lungs'))
    with torch.no_grad(): torch.testing.assert_close(parts + model.head.bias, model.all_logits(x)[:, 0], rtol=1e-4, atol=1e-4)


def test_a_map_of_views_says_whose_it_is():
    model, x = build(), batch()
    with pytest.raises(UserError, match="sees whole and lungs, and their places are not the same"): saliency_maps(model, x)
    with pytest.raises(UserError, match='sees lungs'): saliency_maps(model, x, layer=1, view='whole')
    with pytest.raises(UserError, match="'apices'"): saliency_maps(model, x, view='apices')
    np.testing.assert_array_equal(saliency_maps(model, x, 'Mass', layer=1), saliency_maps(model, x, 'Mass', layer=1, view='lungs'))
    for method in MAP_METHODS:
        asked = build(attention='finding_query') if method == 'attention' else model
        a, b = (saliency_maps(asked, x, None, method, view=view) for view in ('whole', 'lungs'))
        assert a.shape == b.shape == (3, 14, 64, 64) and np.array_equal(a, b) == (method == 'attention')


@settings(deadline=None, max_examples=60)
@given(width=st.integers(40, 300), height=st.integers(40, 300), data=st.data())
def test_a_map_goes_back_to_where_the_box_is(width, height, data):
    "A box marked on the cut-out and laid back is the box on the image; its sum is kept, and no edge shines."
    left, upper = data.draw(st.integers(0, width - 30)), data.draw(st.integers(0, height - 30))
    crop = left, upper, data.draw(st.integers(left + 30, width)), data.draw(st.integers(upper + 30, height))
    x, y = data.draw(st.integers(left, crop[2] - 15)), data.draw(st.integers(upper, crop[3] - 15))
    box = pd.DataFrame(dict(x=[x], y=[y], width=[crop[2] - x], height=[crop[3] - y]))
    inside, side = box_mask(boxes_on_map(box, (height, width), 96, crop), 96), 96
    back = paste_map(inside.astype(float), crop, (width, height))
    edge = 2*(inside.any(0).sum() + inside.any(1).sum()) # pixels that lie half on padding
    assert inside.sum() - edge <= back.sum() <= inside.sum() + 1e-6
    if crop[2] - crop[0] == crop[3] - crop[1]: assert back.sum() == pytest.approx(inside.sum(), rel=1e-6)
    assert back.max() <= (max(width, height)/max(crop[2] - crop[0], crop[3] - crop[1]))**2 + 1e-6 # no edge is brighter than what it was
    (low_x, low_y, high_x, high_y), = boxes_on_map(box, (height, width), side)
    rows, columns = np.nonzero(back > 1e-9)
    assert low_x - 2 <= columns.min() and columns.max() + 1 <= high_x + 2 and low_y - 2 <= rows.min() and rows.max() + 1 <= high_y + 2
    assert paste_map(inside, None, (width, height)) is inside


def test_maps_of_pairs_lie_on_the_whole_image(dataset):
    model = build()
    pairs = box_pairs(dataset.boxes, dataset.table).iloc[::90].reset_index(drop=True)
    maps = {view: pair_maps(model, dataset, pairs, 'evidence', view=view, image_size=64, progress=False) for view in (None, 'whole', 'lungs')}
    np.testing.assert_allclose(maps['whole'] + maps['lungs'], maps[None], rtol=1e-4, atol=1e-6)
    for map_, (crop, size) in zip(maps['lungs'], view_boxes(dataset, pairs.image, 'lungs')):
        shown = paste_map(np.ones((64, 64)), crop, size) > 0
        assert map_[~shown].sum() == 0 and 0 < shown.mean() < 1
    only = pair_maps(build(branches=['test_resnet'], views=['lungs'], branch_heads=False, answer='fusion', branch_stages=-1), dataset, pairs, image_size=64, progress=False)
    assert all((map_[paste_map(np.ones((64, 64)), *box) == 0] == 0).all() for map_, box in zip(only, view_boxes(dataset, pairs.image, 'lungs')))


class Bright(torch.nn.Module):
    "Stands for a branch: one channel, how bright each 8 by 8 cell is beyond .9."
    name, channels, stride = 'bright', 1, 8
    def forward(self, x): return torch.nn.functional.avg_pool2d((x - .9).relu(), 8)


def test_a_model_that_sees_a_bright_spot_in_its_lungs_view_points_at_the_box(dataset, monkeypatch):
    "From a map on the cut-out to a box on the image."
    model = build(reduced_channels=1, attention='none', branch_heads=False, answer='fusion', findings=['Nodule'])
    model.branches = torch.nn.ModuleList([Bright(), Bright()])
    for branch in model.branches: branch.fit = build().branches[0].fit
    model.reduce = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    torch.nn.init.ones_(model.head.weight)
    name = dataset.table.image[3]
    (crop, size), = view_boxes(dataset, [name], 'lungs')
    x, y = crop[0] + .6*(crop[2] - crop[0]), crop[1] + .3*(crop[3] - crop[1])
    spot = pd.DataFrame(dict(image=[name], finding=['Nodule'], x=[x], y=[y], width=[8.], height=[8.]))
    def marked(whole):
        picture = np.array(whole).astype(float)*.5
        picture[round(y):round(y) + 8, round(x):round(x) + 8] = 255
        return Image.fromarray(picture.astype(np.uint8))
    real = ChestDataset.open_image
    monkeypatch.setattr(ChestDataset, 'open_image', lambda self, image: marked(real(self, image)))
    pairs = spot[['image', 'finding']].assign(patient_id='1')
    target, = box_targets(pairs, spot, dataset, 128)
    for view in ('whole', 'lungs', None):
        map_, = pair_maps(model, dataset, pairs, 'evidence', view=view, image_size=128, progress=False)
        rows, columns = np.nonzero(map_ == map_.max())
        assert abs(rows.mean() - np.nonzero(target)[0].mean()) < 9 and abs(columns.mean() - np.nonzero(target)[1].mean()) < 9, view


def test_logits_of_pairs_are_the_fusions(dataset):
    model = build()
    pairs = pd.DataFrame({'image': dataset.table.image[:3].tolist(), 'finding': ['Mass', 'Edema', 'Mass']})
    seen = pair_images(model, dataset, pairs, image_size=64)
    assert seen.shape == (3, 2, 64, 64)
    np.testing.assert_array_equal(seen[:, 0], pair_images(model, dataset, pairs, image_size=64, view='whole'))
    with torch.no_grad(): logits = model.all_logits(torch.tensor(seen))[:, 0]
    np.testing.assert_allclose(pair_logits(model, seen, pairs.finding), logits[range(3), [model.findings.index(f) for f in pairs.finding]], atol=1e-5)


def test_randomising_and_drawing_know_the_heads():
    model = build()
    prefixes = tuple(prefix for _, own in cascade_steps(model) for prefix in own)
    assert all(name.startswith(prefixes) for name in model.state_dict())
    assert not torch.equal(randomised(model, ['branch_heads.'], seed=5).branch_heads[0].weight, model.branch_heads[0].weight)
    table = layer_table(model, 64)
    assert table.parameters.sum() == sum(p.numel() for p in model.parameters()) and 'branch test_byobnet, lungs' in set(table.step)
    assert 'a head of its own' in draw_architecture(model, 64).axes[0].get_title()
