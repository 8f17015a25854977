"""The fusion model: shapes, attention, configuration, errors and losses, on small backbones (no download)."""
import json, math
import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS

from chestnb.model.attention import PositionCode, make_attention, position_code
from chestnb.model.choices import ATTENTIONS, LOSSES
from chestnb.model.losses import Asymmetric, BCE, Focal, make_loss
from chestnb.model.config import REFERENCE_FUSION, SMALL_FUSION
from chestnb.model.backbones import Branch
from chestnb.model.base import set_prior
from chestnb.model.fusion import FusionModel, align_grids, branch_config
from chestnb.model.optimizer import fusion_parameter_groups
from chestnb.model.drawing import draw_architecture, layer_table

ALL = ATTENTIONS + ('none',)
PAIRS = {'different widths': (('test_resnet', 'test_byobnet'), -1),
         'different strides': (('test_resnet', 'test_efficientnet'), [-2, -1]),
         'with a ViT': (('test_vit', 'test_resnet'), -1),
         'with channels last': (('mambaout_femto', 'test_resnet'), [-2, -1])}

def model_of(branches=('test_resnet', 'test_byobnet'), seed=0, reduced_channels=16, **arguments):
    torch.manual_seed(seed)
    return FusionModel(branches, reduced_channels=reduced_channels, **arguments)

def batch(n=2, height=64, width=64, seed=0):
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('attention', ALL)
@pytest.mark.parametrize('pair', PAIRS)
def test_every_attention_on_every_pair_trains_all_parameters(attention, pair):
    branches, stages = PAIRS[pair]
    model = model_of(branches, attention=attention, branch_stages=stages)
    optimizer, moved = torch.optim.SGD(model.parameters(), lr=0.1), {}
    for step in range(2): # timm starts some residual branches at zero: their inner weights move from the second step on
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch(4, 97, 131, seed=step)), torch.ones(4, 14)).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            moved[name] = moved.get(name, False) or bool(p.grad.abs().sum() > 0)
        optimizer.step()
    assert not [name for name, did in moved.items() if not did]
    assert model.eval()(batch(1)).shape == (1, 14)
    largest = [max(sizes) for sizes in zip(*(b(batch(1, 97, 131)).shape[2:] for b in model.branches))]
    assert list(model.fused_features(batch(1, 97, 131)).shape) == [1, 32, *largest]


@pytest.mark.parametrize('size', [(33, 64), (50, 71), (128, 128), (160, 96)])
@pytest.mark.parametrize('branches', [('test_resnet',), ('test_vit', 'test_byobnet')])
def test_any_image_size(size, branches):
    model = model_of(branches, attention='finding_query').eval()
    assert model(batch(2, *size)).shape == (2, 14)
    maps = model.attention_maps(batch(2, *size))
    assert (maps >= 0).all() and torch.allclose(maps.sum((2, 3)), torch.ones(2, 14), atol=1e-5)


def test_images_do_not_influence_each_other_in_eval():
    for attention in ALL:
        model, images = model_of(attention=attention).eval(), batch(5)
        order = torch.tensor([3, 0, 4, 1, 2])
        with torch.no_grad():
            together, alone = model(images), torch.cat([model(image[None]) for image in images])
            assert torch.allclose(together, alone, atol=1e-4)
            assert torch.allclose(model(images[order]), together[order], atol=1e-4)


def test_channels_last_and_half_precision():
    for attention in ALL:
        model, images = model_of(attention=attention).eval(), batch()
        with torch.no_grad():
            expected = model(images)
            assert torch.allclose(model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)), expected, atol=1e-4)
            with torch.autocast('cpu', dtype=torch.bfloat16): half = model(images)
        assert half.dtype == torch.float32 and torch.allclose(half, expected, atol=0.2)


def test_fastai_tensors_are_taken():
    from fastai.torch_core import TensorImageBW, TensorMultiCategory
    model = model_of()
    loss = make_loss('focal')(model(TensorImageBW(batch())), TensorMultiCategory(torch.ones(2, 14)))
    loss.backward()
    assert loss.isfinite()


def test_branch_alone_is_the_same_class():
    config = model_of(branch_stages=[-2, -1]).config
    first, second = (model_of(**branch_config(config, i)) for i in (0, 1))
    for i, own in enumerate((first, second)):
        assert own.config == config | {key: [config[key][i]] for key in ('branches', 'branch_stages', 'weights', 'input_scales')}
    assert first(batch()).shape == (2, 14) and first.branches[0].stride == 16
    for wrong in (2, -1):
        with pytest.raises(UserError, match='counted from 0'): branch_config(config, wrong)


def test_config_survives_json_and_seed_gives_the_same_weights():
    model = model_of(attention='cbam', dropout=0.2, branch_stages=[-2, -1])
    torch.manual_seed(0)
    again = FusionModel.from_config(json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    again.load_state_dict(model.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), model_of(attention='cbam', seed=1).parameters()))


def test_reference_and_small_configurations():
    reference = FusionModel.from_config(REFERENCE_FUSION, load_weights=False)
    assert reference.config == reference.config | REFERENCE_FUSION | dict(weights=['imagenet']*2)
    assert [s['mean'] for s in reference.config['input_scales']] == [.449, .449]
    table = layer_table(reference, 224)
    assert table['shape'].tolist() == ['1×224×224', '1024×7×7', '1024×7×7', '2048×7×7', '1024×7×7', '2048×7×7', '2048×7×7', '2048', '14']
    assert table.parameters.sum() == sum(p.numel() for p in reference.parameters())
    assert 'in the backbones' in draw_architecture(reference).axes[0].get_title()
    small = FusionModel(**SMALL_FUSION)
    assert small.config == small.config | SMALL_FUSION | dict(weights=['none']*2) and len(SMALL_FUSION['branches']) == 2


@pytest.mark.parametrize('findings', [('Fracture',), ('Edema', 'Mass', 'Fracture')])
@pytest.mark.parametrize('attention', ALL)
def test_findings_size_the_model(findings, attention):
    model = model_of(findings=findings, attention=attention)
    assert model.findings == findings and model(batch()).shape == (2, len(findings))
    assert FusionModel.from_config(json.loads(json.dumps(model.config))).findings == findings
    assert set_prior(model, [.3]*len(findings)).head.bias.shape == (len(findings),)


def test_a_configuration_of_0_1_means_what_it_meant():
    "One normalisation for all branches, NIH's findings, weights or not: same logits from the same weights."
    old = dict(branches=['test_resnet', 'test_vit'], reduced_channels=16, attention='cbam', pretrained=True, n_findings=14, dropout=0.0, branch_stages=[-1, -1])
    model = FusionModel.from_config(old, load_weights=False).eval()
    assert model.findings == FINDINGS and model.config['weights'] == ['imagenet', 'imagenet']
    seen = []
    for branch in model.branches: branch.body.register_forward_pre_hook(lambda body, given: seen.append(given[0]))
    model(batch())
    for x in seen: assert torch.allclose(x, (batch() - .449)/.226, atol=1e-5)


def test_each_branch_sees_what_it_was_trained_on():
    "One normalisation for all showed half of the backbones 2.2 times their contrast."
    model, seen = model_of(('test_byobnet', 'test_vit'), input_scales=[None, None]).eval(), []
    for branch in model.branches: branch.body.register_forward_pre_hook(lambda body, given: seen.append(given[0]))
    model(batch())
    assert torch.allclose(seen[0], (batch() - .449)/.226, atol=1e-5) and torch.allclose(seen[1], 2*batch() - 1, atol=1e-5)
    own = model_of(('test_resnet',), input_scales=[(.5, 1/2048)])
    assert own.config['input_scales'] == [dict(mean=.5, deviation=1/2048, size=None)]
    assert FusionModel.from_config(own.config).branches[0].scale == own.branches[0].scale


def test_normalised_images_and_bytes_are_refused():
    for model in (model_of().eval(), model_of().train()):
        for wrong, words in ((255*batch(), '0 to 255|divide bytes'), ((batch() - .449)/.226, 'leave normalising to the model'),
                             (batch().mul(255).byte(), 'floats in 0..1'), (batch()*math.nan, 'nan')):
            with pytest.raises(UserError, match=words): model(wrong)
    assert model_of()(batch().clamp(0, 1)).isfinite().all()


def test_freeze_stops_the_branches_and_not_the_head():
    "chestnb 0.1: `Learner.freeze()` stopped the head's weights and let its bias and norms learn."
    from fastai.data.core import DataLoaders
    from fastai.callback.progress import no_bar             # patches the Learner
    from fastai.learner import Learner
    dl = torch.utils.data.DataLoader([(image, torch.ones(14)) for image in batch(4)], batch_size=2)
    learn = Learner(DataLoaders(dl, dl), model_of(), loss_func=BCE(), splitter=fusion_parameter_groups)
    learn.freeze()
    norms = {id(p) for m in learn.model.branches.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    frozen = {n for n, p in learn.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in learn.model.named_parameters() if n.startswith('branches.') and id(p) not in norms}
    before = {n: p.clone() for n, p in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    moved = {n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])}
    assert {'head.weight', 'head.bias', 'reduce.0.0.weight'} <= moved and not moved & frozen
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters()) and [len(g) for g in learn.opt.param_lists] == [len(g) for g in fusion_parameter_groups(learn.model)]


def test_fastai_gives_probabilities_and_decisions():
    "chestnb 0.1: `get_preds` gave logits of -3 to -1."
    from fastai.data.core import DataLoaders
    from fastai.callback.progress import no_bar             # patches the Learner
    from fastai.learner import Learner
    from fastai.data.load import DataLoader
    dl = DataLoader([(image, torch.full((14,), math.nan)) for image in batch(4)], bs=2)
    for name in LOSSES:
        learn = Learner(DataLoaders(dl, dl), model_of(), loss_func=make_loss(name, [1.]*14))
        with learn.no_bar(): probabilities, _, decisions, losses = learn.get_preds(with_decoded=True, with_loss=True)
        with torch.no_grad(): assert torch.allclose(probabilities, learn.model.eval()(batch(4)).sigmoid(), atol=1e-6)
        assert decisions.dtype == torch.bool and torch.equal(decisions, probabilities > .5) and losses.eq(0).all()


@pytest.mark.parametrize('attention', ['finding_query', 'query_and_mean'])
@pytest.mark.parametrize('branches', [('test_resnet', 'test_vit'), ('mixer_s32_224', 'hrnet_w18_small')])
def test_models_can_be_exported_and_traced(branches, attention):
    "Checks of the batch stay out of the graph."
    model, images = model_of(branches, attention=attention).eval(), batch()
    with torch.no_grad():
        for made in (torch.export.export(model, (images,)).module(), torch.jit.trace(model, images, check_trace=False)):
            assert torch.allclose(made(images), model(images), atol=1e-5)


def test_parameter_groups_partition_the_parameters():
    model = model_of(attention='cbam')
    backbone, new = fusion_parameter_groups(model)
    ids = [id(p) for p in backbone + new]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert id(model.head.weight) in {id(p) for p in new} and id(next(model.branches[1].parameters())) in {id(p) for p in backbone}


@pytest.mark.parametrize('arguments, message', [
    (dict(branches='resnet50'), r"such as \('resnet50',\)"), (dict(branches=()), 'list of timm names'),
    (dict(branches=('resnt50',)), 'Did you mean resnet50'), (dict(branches=(3,)), 'not a timm model'),
    (dict(branches=('resnet50.mine',)), r'Did you mean resnet50\.'), (dict(weights='imagnet'), "expected 'none'"), (dict(weights=True), "expected 'none'"),
    (dict(weights=['none']), 'weights must be one for all branches, or a list'), (dict(input_scales=[(0, 0)]*2), 'a deviation above 0'),
    (dict(findings=()), 'findings must be a list'), (dict(findings='Mass'), 'findings must be a list'), (dict(findings=('Mass', 'Mass')), 'each once'),
    (dict(branches=('test_resnet',), branch_stages=-9), 'gives no feature map'),
    (dict(attention='magic'), 'choose one of'), (dict(attention=None), 'choose one of'), (dict(reduced_channels=0), 'reduced_channels'),
    (dict(dropout=1), 'dropout'), (dict(branch_stages=[-1]), 'branch_stages'),
    (dict(branch_stages=0), 'branch_stages')])
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(UserError, match=message): FusionModel(**{'branches': ('test_resnet', 'test_vit'), 'reduced_channels': 16} | arguments)


def test_bad_configurations_and_batches():
    with pytest.raises(UserError, match='keys among branches'): FusionModel.from_config({'branch': 'resnet50'})
    with pytest.raises(UserError, match='remove pretrained'): FusionModel.from_config(SMALL_FUSION | {'pretrained': True})
    with pytest.raises(UserError, match='findings without names'): FusionModel.from_config({'branches': ['test_resnet'], 'n_findings': 5})
    model = model_of()
    for wrong in (torch.zeros(2, 3, 64, 64), torch.zeros(1, 64, 64), torch.zeros(2, 1, 16, 64)):
        with pytest.raises(UserError, match='must have the shape'): model(wrong)
    with pytest.raises(UserError, match="attention='finding_query'"): model.attention_maps(batch())


def test_grey_first_convolution_is_the_sum_of_the_colours(tmp_path):
    import timm
    from safetensors.torch import save_file
    colour = timm.create_model('test_resnet')
    save_file(colour.state_dict(), tmp_path/'model.safetensors')
    grey = timm.create_model('test_resnet', in_chans=1, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path/'model.safetensors')))
    images = batch()
    with torch.no_grad(): assert torch.allclose(grey.eval()(images), colour.eval()(images.repeat(1, 3, 1, 1)), atol=1e-4)


def shuffle(x, order): return x.flatten(2)[:, :, order].view_as(x)

def test_which_attention_knows_places():
    torch.manual_seed(0)
    x, order = torch.randn(2, 32, 4, 4), torch.randperm(16)
    blind = {name: torch.allclose(block(shuffle(x, order)), shuffle(block(x), order), atol=1e-4)
             for name in ALL for block in [make_attention(name, 32).eval()]}
    assert blind == dict(squeeze_excitation=True, cbam=False, self_attention=False, finding_query=False, query_and_mean=False, none=True)


def test_zero_queries_are_average_pooling():
    asking, plain = model_of(attention='finding_query').eval(), model_of(attention='none').eval()
    plain.load_state_dict({k: v for k, v in asking.state_dict().items() if not k.startswith('attention')})
    torch.nn.init.zeros_(asking.attention.query)
    with torch.no_grad(): assert torch.allclose(asking(batch()), plain(batch()), atol=1e-5)


def test_query_and_mean_is_the_query_beside_the_mean():
    "Each half of the head alone gives the model that has only that half."
    both, plain, asking = (model_of(attention=name).eval() for name in ('query_and_mean', 'none', 'finding_query'))
    assert both.head.weight.shape == (14, 2*plain.head.in_features)
    own, mean = both.head.weight.detach().chunk(2, dim=1)
    shared = {k: v for k, v in both.state_dict().items() if k != 'head.weight'}
    asking.load_state_dict(shared | {'head.weight': own})
    plain.load_state_dict({k: v for k, v in shared.items() if not k.startswith('attention')} | {'head.weight': mean})
    with torch.no_grad(): assert torch.allclose(both(batch()), asking(batch()) + plain(batch()) - both.head.bias, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))
def test_position_code_at_any_grid(height, width, quarter):
    code = position_code(4*quarter, height, width)
    assert code.shape == (4*quarter, height, width) and code.abs().max() <= 1 + 1e-6
    assert torch.allclose(code, position_code(4*quarter, 3*height, 3*width)[:, 1::3, 1::3], atol=1e-4)


def test_align_grids_keeps_the_finest():
    maps = align_grids([torch.rand(1, 2, 4, 9), torch.rand(1, 3, 8, 5)])
    assert [tuple(m.shape) for m in maps] == [(1, 2, 8, 9), (1, 3, 8, 9)]


def test_prior():
    prevalence = np.linspace(0.01, 0.5, 14); prevalence.setflags(write=False)
    model = set_prior(model_of(), prevalence)
    assert np.allclose(model.head.bias.detach().sigmoid().numpy(), prevalence, atol=1e-5)
    assert set_prior(model, [0.]*14).head.bias.isfinite().all()
    for wrong in ([0.5]*13, [1.5]*14, [math.nan]*14):
        with pytest.raises(UserError, match='14 shares'): set_prior(model, wrong)


def by_formula(name, p, target, weights):
    "The papers' formulas in float64, for probabilities that are neither 0 nor 1."
    t, w = target.double(), weights.double()
    if name in ('bce', 'weighted_bce'): return -((w if name == 'weighted_bce' else 1)*t*p.log() + (1 - t)*(1 - p).log())
    if name == 'focal': return -(0.8*t*(1 - p)**4*p.log() + 0.2*(1 - t)*p**4*(1 - p).log())
    shifted = (p - 0.05).clamp(min=0)
    return -(t*(1 - p)*p.log() + (1 - t)*shifted**4*(1 - shifted).log())

@pytest.mark.parametrize('name', LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_losses_follow_the_formulas(name, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 14, generator=generator)*4
    targets, weights = torch.randint(0, 2, (5, 14), generator=generator), torch.rand(14, generator=generator)*10 + 1
    value = make_loss(name, weights)(logits, targets)
    assert math.isclose(value.item(), by_formula(name, logits.double().sigmoid(), targets, weights).mean().item(), rel_tol=1e-3, abs_tol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_gradients_are_finite_at_extremes(name):
    logits = torch.tensor([[-1e4, -90., -20., 0., 20., 90., 1e4]]*2, requires_grad=True)
    make_loss(name, torch.full((7,), 5.))(logits, torch.stack([torch.zeros(7), torch.ones(7)])).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] >= 0).all() and (logits.grad[1] <= 1e-6).all() or name == 'focal'


def test_special_cases_are_cross_entropy():
    logits, targets = torch.randn(6, 14), (torch.rand(6, 14) > 0.7).float()
    assert torch.allclose(Focal(0.5, 0)(logits, targets), BCE()(logits, targets)/2, atol=1e-6)
    assert torch.allclose(Asymmetric(0, 0, 0)(logits, targets), BCE()(logits, targets), atol=1e-6)
    assert torch.allclose(Asymmetric(2, 2, 0)(logits, targets), 2*Focal(0.5, 2)(logits, targets), atol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_unknown_labels_are_left_out_of_loss_and_gradient(name, seed):
    "The mean is over known cells: the loss of a column is that of its known images alone."
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(6, 5, generator=generator)*4).requires_grad_()
    targets, known = torch.randint(0, 2, (6, 5), generator=generator).float(), torch.rand(6, 5, generator=generator) > .4
    loss = make_loss(name, torch.arange(1., 6.))
    value = loss(logits, targets.where(known, math.nan))
    value.backward()
    each = loss.each(logits.detach(), targets)[known]
    assert math.isclose(value.item(), each.mean().item() if known.any() else 0, rel_tol=1e-4, abs_tol=1e-7)
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).any() == bool(known.any())
    loss.reduction = 'sum'
    assert math.isclose(loss(logits, targets.where(known, math.nan)).item(), each.sum().item(), rel_tol=1e-4, abs_tol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_a_batch_of_unknown_labels_has_loss_0_and_a_gradient(name):
    logits = (torch.randn(3, 2)*50).requires_grad_()
    value = make_loss(name, [2., 3.])(logits, torch.full((3, 2), math.nan))
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 2))


def test_uncertain_labels_of_minus_one_are_refused():
    for wrong in (-1., 2., 255.):
        with pytest.raises(UserError, match='NaN where unknown'): make_loss('bce')(torch.zeros(1, 2), torch.tensor([[1., wrong]]))
    assert make_loss('bce')(torch.zeros(1, 2), torch.tensor([[.3, .9]])).isfinite()      # MixUp and smoothed labels


def test_position_codes_are_made_once_and_never_saved():
    where = PositionCode(8)
    for height, width in ((4, 4), (3, 5), (4, 4)): assert torch.equal(where(torch.zeros(1, 8, height, width)), position_code(8, height, width))
    assert len(where.codes) == 2 and not where.state_dict()
    with torch.inference_mode(): where(torch.zeros(1, 8, 6, 6))
    (where(torch.zeros(1, 8, 6, 6))*torch.ones(8, 6, 6, requires_grad=True)).sum().backward()   # made in inference, used in training


def test_loss_errors():
    with pytest.raises(UserError, match='same shape'): make_loss('focal')(torch.zeros(2, 14), torch.zeros(2, 1))
    with pytest.raises(UserError, match='needs positive_weights'): make_loss('weighted_bce')
    with pytest.raises(UserError, match='choose one of'): make_loss('hinge')


@pytest.mark.parametrize('attention', ALL)
def test_a_few_steps_lower_the_loss(attention):
    model, images = model_of(attention=attention), batch(8, seed=3)
    targets = (torch.rand(8, 14, generator=torch.Generator().manual_seed(4)) < 0.4).float()
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=5e-3), BCE()
    first = loss(model(images), targets).item()
    for _ in range(15):
        optimizer.zero_grad(); value = loss(model(images), targets); value.backward(); optimizer.step()
    assert value.item() < 0.85*first


def test_every_attention_head_knows_the_place():
    "Two cells of the same look are told apart by each head, whichever row or column they differ in."
    from chestnb.model.attention import position_code
    code = position_code(8, 4, 4).repeat(4, 1, 1).reshape(4, 8, 4, 4)
    for head in code: assert not torch.allclose(head[:, 0, 0], head[:, 1, 0]) and not torch.allclose(head[:, 0, 0], head[:, 0, 1])
