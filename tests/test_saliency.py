"""Maps of a fusion model: exactness, references, many families, nothing left behind, and the randomisation check."""
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torchcam.methods import CAM, GradCAM

from chestnb.data.findings import FINDINGS
from chestnb.data.dataset import ChestDataset
from chestnb.core.errors import UserError
from chestnb.model.attention import ATTENTIONS
from chestnb.model.config import SMALL_FUSION
from chestnb.model.fusion import FusionModel
from chestnb.evaluation.localisation import box_pairs
from chestnb.model.maps import MAP_METHODS, draw_map, enlarge, grid_maps, pair_images, pair_logits, pair_maps, saliency_maps
from chestnb.model.layers import eval_mode, split_at_layer
from chestnb.model.saliency import attention_of, evidence_of, grad_cam, grad_cam_pp, layer_gradients
from chestnb.model.sanity import cascade_steps, map_similarity, randomisation_check, randomised

SMALL = SMALL_FUSION | dict(reduced_channels=16, branch_stages=-1)


def build(seed=0, **changes):
    "A model with random weights and moving statistics that are not 0 and 1."
    torch.manual_seed(seed)
    model = FusionModel(**SMALL | changes)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(0, .1); part.running_var.uniform_(.5, 1.5)
    return model.eval()


def batch(n=3, height=64, width=64, seed=1):
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module', params=[*ATTENTIONS, 'none'])
def model(request): return build(attention=request.param)


# exactness

@pytest.mark.parametrize('layer', ['fused', 0, 1])
def test_the_two_halves_are_the_model(model, layer):
    features, rest = split_at_layer(model, batch(), layer)
    with torch.no_grad(): torch.testing.assert_close(rest(features), model(batch()), rtol=1e-4, atol=1e-5)
    assert not features.requires_grad


def test_evidence_adds_up_to_the_logit(model):
    with torch.no_grad(): logits = model(batch())
    torch.testing.assert_close(evidence_of(model, batch()).sum((2, 3)) + model.head.bias, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('layer', ['fused', 0, 1])
def test_gradient_is_the_slope(model, layer):
    "Against finite differences along the gradient itself."
    features, (slope,) = layer_gradients(model, batch(1), [5], layer)
    step = .004*float(features.norm()/slope.norm())
    with eval_mode(model), torch.no_grad():
        _, rest = split_at_layer(model, batch(1), layer)
        measured = float(rest(features + step*slope)[0, 5].double() - rest(features - step*slope)[0, 5].double())/(2*step)
    assert float((slope**2).sum()) == pytest.approx(measured, rel=.05)


def test_grad_cam_is_the_class_activation_map_for_average_pooling(model):
    if model.config['attention'] in ('finding_query', 'query_and_mean'): pytest.skip('its pooling is weighted by attention, so the two differ by design')
    fused = model.fused_features(batch()).detach()
    weights = model.head.weight.detach()
    for finding in (0, 13):
        cam = torch.zeros(fused.shape[0], *fused.shape[2:])
        for channel in range(fused.shape[1]): cam += weights[finding, channel]*fused[:, channel]
        own = grid_maps(model, batch(), FINDINGS[finding], 'grad_cam')[:, 0]
        torch.testing.assert_close(own*own[0].numel(), cam.relu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own, grid_maps(model, batch(), FINDINGS[finding], 'evidence')[:, 0], rtol=1e-4, atol=1e-6)


def test_for_finding_query_grad_cam_is_not_the_evidence():
    own = build(attention='finding_query')
    with torch.no_grad(): own.attention.query.mul_(50)
    a, b = (grid_maps(own, batch(), 'Mass', m)[0, 0] for m in ('grad_cam', 'evidence'))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < .999


def test_grad_cam_pp_against_the_plain_formula():
    "Equations 10 and 19 of Chattopadhay et al. with exp(score) as the output, place by place; the common factor cancels."
    random = np.random.default_rng(0)
    features, gradient = np.maximum(random.normal(size=(1, 3, 4, 5)), 0), random.normal(size=(1, 3, 4, 5))
    wanted = np.zeros((4, 5))
    for k in range(3):
        weight, total = 0., features[0, k].sum()
        for i in range(4):
            for j in range(5):
                g = gradient[0, k, i, j]
                weight += g**2/(2*g**2 + total*g**3)*max(g, 0)
        wanted += weight*features[0, k]
    own = grad_cam_pp(torch.tensor(features), torch.tensor(gradient))[0]
    np.testing.assert_allclose(own, np.maximum(wanted, 0), rtol=1e-6)


def test_grad_cam_pp_without_gradient_is_zero_not_nan():
    assert grad_cam_pp(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).eq(0).all()


class Plain(torch.nn.Module):
    "Convolution, average, linear head: what torch-cam was made for."
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 4)
    def forward(self, x): return self.head(self.body(x).mean((2, 3)))


def test_formulas_against_torchcam_on_a_plain_network():
    torch.manual_seed(0)
    net, x = Plain().eval(), batch(2, 16, 16)
    features = net.body(x).detach()
    gradient = (net.head.weight[2].detach()/256)[None, :, None, None].expand_as(features)
    with GradCAM(net, 'body') as extractor: wanted = extractor(2, net(x), normalized=False)[0]
    torch.testing.assert_close(grad_cam(features, gradient), wanted, rtol=1e-4, atol=1e-7)
    with CAM(net, 'body', 'head') as extractor:
        net(x); cam = extractor(2, normalized=False)[0]
    torch.testing.assert_close(grad_cam(features, gradient)*256, cam.relu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('backbone', ['densenet121', 'resnet18', 'test_convnext'])
def test_branches_against_torchcams_hooks(backbone):
    "DenseNet ends in an in-place ReLU; torch-cam differentiates the whole model, we do not."
    own = build(branches=[backbone, 'test_resnet'])
    x, found = batch(2, 96, 96), 0
    for finding in range(0, 14, 2):
        with GradCAM(own, 'branches.0') as extractor: wanted = extractor(finding, own(x), normalized=False)[0]
        ours = grid_maps(own, x, FINDINGS[finding], 'grad_cam', 0)[:, 0]
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4*float(wanted.max()) + 1e-9)
        found += int(wanted.max() > 0)
    assert found >= 2


# images and logits of pairs

def test_pairs_have_their_own_image_and_their_own_logit(embedded):
    "In any order, with images twice, in batches that do not divide the number; and the model's mode stays."
    dataset, own = ChestDataset(embedded), build().train()
    names = dataset.table.image[[5, 0, 5, 9]].tolist()
    pairs = pd.DataFrame({'image': names, 'finding': ['Mass', 'Edema', 'Hernia', 'Mass']})
    images = pair_images(own, dataset, pairs, image_size=64)
    assert images.shape == (4, 64, 64) and images.dtype == np.float32 and (images[0] == images[2]).all() and 0 <= images.min() and images.max() <= 1
    logits = pair_logits(own, images, pairs.finding, batch_size=3)
    assert own.training
    with eval_mode(own), torch.no_grad(): wanted = own(torch.tensor(images)[:, None])
    np.testing.assert_allclose(logits, [wanted[i, FINDINGS.index(finding)] for i, finding in enumerate(pairs.finding)], atol=1e-5)


# many families, sizes, layers

@pytest.mark.parametrize('backbone', ['densenet121', 'convnext_atto', 'test_vit', 'swin_tiny_patch4_window7_224'])
@pytest.mark.parametrize('layer', ['fused', 0, 1])
def test_every_family_has_maps(backbone, layer):
    own = build(branches=[backbone, 'test_resnet'], attention='finding_query')
    for method in ('grad_cam', 'grad_cam_pp'):
        maps = saliency_maps(own, batch(2, 64, 96), ['Mass', 'Hernia'], method, layer)
        assert maps.shape == (2, 2, 64, 96) and np.isfinite(maps).all() and (maps >= 0).all()


def test_grids_of_padded_families_are_cut_back():
    maps = torch.zeros(1, 1, 4, 4); maps[..., -1, -1] = 1
    whole, cut = enlarge(maps, (64, 64)), enlarge(maps, (50, 60), (50/64, 60/64))
    torch.testing.assert_close(cut, whole[..., :50, :60])


def test_enlarging_puts_values_in_the_middle_of_their_cells():
    maps = torch.zeros(1, 1, 4, 4); maps[0, 0, 1, 2] = 1
    big = enlarge(maps, (128, 128))[0, 0]
    rows, columns = np.nonzero(np.asarray(big) == float(big.max()))
    assert (rows.mean(), columns.mean()) == (47.5, 79.5)


def test_a_model_that_sees_one_bright_spot_points_at_it():
    "The map of a hand-made model lies where the signal is: rows and columns are not exchanged."
    own = build(branches=['test_resnet'], attention='none')
    class Blur(torch.nn.Module):
        def forward(self, x): return torch.nn.functional.avg_pool2d(x, 8)
    own.branches[0].forward = Blur().forward
    own.branches[0].stride = 8
    own.reduce[0] = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 1, bias=False), torch.nn.ReLU())
    with torch.no_grad(): own.reduce[0][0].weight.fill_(1.); own.head.weight.fill_(1.)
    x = torch.zeros(1, 1, 64, 96); x[..., 16:24, 72:80] = 1
    for method in ('evidence', 'grad_cam', 'grad_cam_pp'):
        for layer in ('fused',) if method == 'evidence' else ('fused', 0):
            map_ = saliency_maps(own, x, 'Mass', method, layer)[0, 0]
            rows, columns = np.nonzero(map_ == map_.max())
            assert (rows.mean(), columns.mean()) == (19.5, 75.5), method


def test_all_findings_in_order(model):
    for method in MAP_METHODS:
        if method == 'attention' and model.config['attention'] not in ('finding_query', 'query_and_mean'): continue
        all_ = saliency_maps(model, batch(), method=method)
        assert all_.shape == (3, 14, 64, 64)
        some = saliency_maps(model, batch(), ['Hernia', 'Atelectasis'], method)
        np.testing.assert_allclose(some, all_[:, [13, 0]], rtol=1e-5, atol=1e-8)


def test_batch_size_does_not_matter(model):
    np.testing.assert_allclose(saliency_maps(model, batch(5), 'Mass', batch_size=2), saliency_maps(model, batch(5), 'Mass', batch_size=5), rtol=1e-3, atol=1e-7)


def test_attention_maps_sum_to_one():
    for name in ('finding_query', 'query_and_mean'):
        torch.testing.assert_close(attention_of(build(attention=name), batch()).sum((2, 3)), torch.ones(3, 14))
    with pytest.raises(UserError, match='finding_query'): attention_of(build(attention='cbam'), batch())


# nothing is left behind

@pytest.mark.parametrize('method,layer', [('attention', 'fused'), ('evidence', 'fused'), ('grad_cam', 'fused'), ('grad_cam_pp', 0)])
def test_making_maps_leaves_no_trace(method, layer):
    own = build(attention='finding_query', dropout=.5)
    own.train(); own.branches[0].eval(); own.reduce[1].eval()
    modes = [m.training for m in own.modules()]
    state = {k: v.clone() for k, v in own.state_dict().items()}
    x = batch()
    with torch.no_grad(): saliency_maps(own, x, method=method, layer=layer)             # also inside no_grad
    assert [m.training for m in own.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in own.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in own.parameters()) and x.grad is None and not x.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in own.modules())


def test_modes_come_back_after_an_error():
    own = build().train()
    with pytest.raises(UserError): saliency_maps(own, batch(1, 8, 8))
    assert own.training and own.branches[0].training


def test_frozen_models_have_maps_too():
    own = build()
    wanted = saliency_maps(own, batch(), 'Mass', layer=0)
    np.testing.assert_array_equal(saliency_maps(own.requires_grad_(False), batch(), 'Mass', layer=0), wanted)


@pytest.mark.parametrize('arguments,words', [
    (dict(method='gradcam'), 'expected one of attention'), (dict(findings=['Cough']), 'Cough'), (dict(findings=[]), 'expected some of'), (dict(findings='cough'), 'this model answers for'),
    (dict(layer=2), "this model has 'fused', 0, 1"), (dict(layer='head'), "layer is 'head'"), (dict(layer=True), 'layer is True'),
    (dict(method='evidence', layer=1), 'fused features only')])
def test_wrong_requests_are_refused(arguments, words):
    with pytest.raises(UserError, match=words): saliency_maps(build(), batch(1), **arguments)


def test_maps_follow_the_models_own_findings():
    "NIH's order of findings decided which map was shown, whatever the model was trained for."
    own = build(findings=('Fracture', 'Mass'))
    both = saliency_maps(own, batch(), method='evidence')
    assert both.shape[1] == 2
    np.testing.assert_array_equal(saliency_maps(own, batch(), 'Mass', 'evidence')[:, 0], both[:, 1])
    with pytest.raises(UserError, match='Edema: this model answers for Fracture, Mass'): saliency_maps(own, batch(), 'Edema')


@pytest.mark.parametrize('backbone', ['mixer_s32_224', 'hrnet_w18_small'])
@pytest.mark.parametrize('layer', ['fused', 0])
def test_maps_of_branches_that_resize_or_pad_cover_the_image(backbone, layer):
    maps = saliency_maps(build(branches=[backbone, 'test_resnet']), batch(1, 50, 70), ['Mass'], layer=layer)
    assert maps.shape == (1, 1, 50, 70) and np.isfinite(maps).all()


def test_no_images_and_colour_images_are_refused():
    with pytest.raises(UserError, match='no image'): saliency_maps(build(), batch(0))
    with pytest.raises(UserError, match='one channel'): saliency_maps(build(), torch.zeros(1, 3, 64, 64))


# pairs of a data set

@pytest.fixture(scope='module')
def some_pairs(embedded):
    dataset = ChestDataset(embedded)
    return dataset, box_pairs(dataset.boxes, dataset.table).iloc[::70].sample(frac=1, random_state=0).reset_index(drop=True)


def test_pair_maps_belong_to_their_pairs(some_pairs):
    dataset, pairs = some_pairs
    own = build(attention='finding_query')
    maps = pair_maps(own, dataset, pairs, 'evidence', image_size=64)
    assert maps.shape == (len(pairs), 64, 64)
    for row in (0, len(pairs)//2, len(pairs) - 1):
        single = pair_maps(own, dataset, pairs.iloc[[row]], 'evidence', image_size=64)[0]
        np.testing.assert_allclose(maps[row], single, rtol=1e-3, atol=1e-7)
    shuffled = pairs.sample(frac=1, random_state=1)
    np.testing.assert_allclose(pair_maps(own, dataset, shuffled, 'evidence', image_size=64), maps[shuffled.index], rtol=1e-3, atol=1e-7)


def test_pair_maps_need_a_size(some_pairs):
    with pytest.raises(UserError, match='image_size'): pair_maps(build(), *some_pairs)


# the randomisation check

def test_cascade_covers_every_weight_once(model):
    steps = cascade_steps(model)
    for name in model.state_dict():
        assert sum(name.startswith(tuple(prefixes)) for _, prefixes in steps) == 1, name
    assert steps[0][0] == 'head' and 'stage' in steps[-1][0]


@pytest.mark.parametrize('seed', [0, 5])
def test_randomised_changes_only_what_it_says(seed):
    own = build(attention='finding_query', seed=3)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    state = torch.random.get_rng_state()
    changed = randomised(own, ['head.', 'attention.'], seed)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in changed.state_dict().items():
        same = torch.equal(value, before[name])
        if name.startswith(('head.', 'attention.')) and value.ndim > 1: assert not same, name
        elif not name.startswith(('head.', 'attention.')): assert same, name
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert torch.equal(changed.head.weight, randomised(own, ['head.'], seed).head.weight)


def test_a_randomised_model_has_other_maps(some_pairs):
    dataset, pairs = some_pairs
    own = build(attention='finding_query', seed=3)
    whole = [p for _, prefixes in cascade_steps(own) for p in prefixes]
    for method in ('evidence', 'grad_cam', 'grad_cam_pp'):
        one, two = (pair_maps(m, dataset, pairs, method, image_size=64) for m in (own, randomised(own, whole, 9)))
        assert map_similarity(one, two).rank_correlation.mean() < .9, method
        assert map_similarity(one, one).min().min() == pytest.approx(1)


def test_check_starts_at_one_and_counts(some_pairs):
    dataset, pairs = some_pairs
    check = randomisation_check(build(attention='finding_query', seed=3), dataset, pairs.head(4), 'evidence', image_size=64)
    assert check.randomised_up_to.tolist()[:4] == ['trained', 'head', 'attention', 'reduce']
    assert check.iloc[0][['rank_correlation', 'ssim']].astype(float).tolist() == pytest.approx([1, 1])
    assert (check.maps == 4).all() and check.constant.between(0, 4).all()
    assert check.rank_correlation.iloc[1:].lt(.999).all()
    again = randomisation_check(build(attention='finding_query', seed=3), dataset, pairs.head(4), 'evidence', image_size=64)
    pd.testing.assert_frame_equal(check, again)


def test_similarity_against_scipy_and_scikit_image():
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity
    first, second = np.random.default_rng(0).integers(0, 9, (2, 3, 16, 16)).astype(float)
    found = map_similarity(first, second)
    for i in range(3):
        assert found.rank_correlation[i] == pytest.approx(spearmanr(first[i].ravel(), second[i].ravel())[0])
        assert found.ssim[i] == pytest.approx(structural_similarity(first[i]/first[i].max(), second[i]/second[i].max(), data_range=1.))
    assert map_similarity([np.ones((16, 16))], first[:1]).isna().all(axis=None)


# drawing

def test_drawing_has_box_and_honest_title():
    ax = Figure().subplots()
    map_ = np.zeros((32, 32)); map_[4:8, 10:14] = 2.
    draw_map(np.zeros((32, 32)), map_, ax, np.array([[10, 4, 14, 8]]), 'Mass')
    box, = ax.patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (9.5, 3.5, 4, 4)
    overlay = np.asarray(ax.images[1].get_array())
    assert overlay.max() == 1 and (overlay[4:8, 10:14] == 1).all()
    draw_map(np.zeros((32, 32)), 0*map_, ax, title='Mass')
    assert 'nothing speaks for it' in ax.get_title()
    with pytest.raises(UserError, match='same|square'): draw_map(np.zeros((16, 16)), map_, ax)
