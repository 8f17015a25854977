"""The commands, typed as a person would type them."""
import json
import shutil

import pandas as pd
import pytest

from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS
from typed import typed


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "An empty folder with a tiny synthetic data set that the command made."
    folder = tmp_path_factory.mktemp('commands')
    done = typed('chestnb_phantom', '--to', 'cohort', '--n_patients', 60, '--size', 32, '--seed', 7, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_phantom_made_a_data_set_and_does_not_overwrite_it(place):
    table = pd.read_csv(place/'cohort'/'data.csv')
    assert table['Patient ID'].nunique() == 60 and table['Patient ID'].min() >= 90_000_001
    before = (place/'cohort'/'data.csv').read_bytes()
    again = typed('chestnb_phantom', '--to', 'cohort', '--n_patients', 10, cwd=place)
    assert again.returncode == 2 and 'cohort' in again.stderr and 'Traceback' not in again.stderr
    assert (place/'cohort'/'data.csv').read_bytes() == before


def test_check(place):
    done = typed('chestnb_check', '--data', 'cohort', cwd=place)
    assert done.returncode == 0, done.stderr
    assert 'OK:' in done.stdout and 'synthetic' in done.stdout and 'Hernia' in done.stdout


@pytest.mark.parametrize('words', [['cohort'], ['--data', 'cohort'], ['--data=cohort'], ['cohort', '--data', 'cohort']])
def test_the_main_argument_may_be_given_either_way(place, words):
    "0.1 took a bare folder in some commands and --data in others"
    done = typed('chestnb_check', *words, '--skip-images', cwd=place)
    assert done.returncode == 0 and 'OK:' in done.stdout, done.stderr


MAIN = dict(chestnb_audit='data', chestnb_check='data', chestnb_demo='data', chestnb_evaluate='predictions', chestnb_import='source', chestnb_nih='to',
            chestnb_chestmnist='to', chestnb_pack='data', chestnb_phantom='to', chestnb_report='predictions', chestnb_train='data', chestnb_predict='files', chestnb_export='run', chestnb_page='run')


@pytest.mark.parametrize('command', MAIN)
def test_every_command_takes_its_main_argument_either_way(command):
    said = ' '.join(typed(command, '--help', cwd='.').stdout.split())
    several = ' ...' if command == 'chestnb_predict' else ''
    assert f'[{MAIN[command].upper()}{several}]' in said and f'--{MAIN[command]} ' in said and f'the same as --{MAIN[command]}' in said


def test_lung_crops_are_packed_and_read(place, monkeypatch):
    "A lung crop bypassed the pack, and no command could pack it"
    done = typed('chestnb_pack', 'cohort', '--size', 32, '--views', 'whole,lungs', '--workers', 1, cwd=place)
    assert done.returncode == 0 and '32 px, whole' in done.stdout and '32 px, lungs' in done.stdout, done.stderr
    from chestnb.data.dataset import ChestDataset
    from chestnb.data.items import GreyImages
    assert None not in GreyImages(ChestDataset(place/'cohort'), 32, views=['whole', 'lungs']).packs
    monkeypatch.setenv('CHESTNB_CACHE', str(place/'cache'))
    (place/'cohort'/'segmentation.csv').rename(place/'masks.csv')
    try: done = typed('chestnb_pack', 'cohort', '--size', 16, '--views', 'lungs', cwd=place)
    finally: (place/'masks.csv').rename(place/'cohort'/'segmentation.csv')
    assert done.returncode == 0 and 'Lungs found in' in done.stdout and '16 px, lungs' in done.stdout, done.stderr


def test_two_different_folders_are_refused(place):
    done = typed('chestnb_check', 'cohort', '--data', 'other', cwd=place)
    assert done.returncode == 2 and 'Give one of them' in done.stderr and 'Traceback' not in done.stderr


def test_options_of_training_are_the_same_in_both_commands_and_name_every_choice():
    "Branches, stages, sampler, views, weight decay ... could not be chosen on the command line of 0.1"
    helps = [typed(command, '--help', cwd='.').stdout for command in ('chestnb_train', 'chestnb_demo')]
    options = [{line.split()[0]: ' '.join(line.split()[2:]) for line in text.split('options:')[1].splitlines() if line.strip().startswith('--')} for text in helps]
    choices = {'--branches', '--branch_stages', '--weights', '--attention', '--sampler', '--views', '--branch_heads', '--average_weights', '--weight_decay', '--backbone_rate', '--loss', '--seed', '--unknown'}
    assert choices <= options[0].keys() & options[1].keys()
    assert all(options[0][name] == options[1][name] for name in options[0].keys() & options[1].keys() - {'--out', '--split'})


@pytest.mark.parametrize('words', [['--branch_stages', '-1,-2'], ['--branch-stages', '-1,-2'], ['--branch_stages=-1,-2']])
def test_a_list_that_begins_with_a_minus_is_a_value(words):
    "argparse took -1,-2 for an option, so that branch_stages could not be typed as its help says"
    from chestnb.commands.common import typed_arguments
    from chestnb.commands.train import chestnb_train
    assert typed_arguments(chestnb_train.__wrapped__, 'data', ['set', *words])['branch_stages'] == '-1,-2'


def test_a_split_that_is_neither_a_word_nor_a_file_names_both():
    from chestnb.commands.train import choose_split
    with pytest.raises(UserError, match="--split oficial: is neither 'patient', 'no_test' nor 'official'"): choose_split(None, 'oficial')


@pytest.mark.parametrize('error', [MemoryError(), MemoryError('Unable to allocate 74.5 GiB'), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
                                   RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')])
def test_too_little_memory_is_a_sentence(error, capsys):
    from chestnb.commands.common import errors_as_sentences
    with pytest.raises(SystemExit) as ended:
        with errors_as_sentences('chestnb_train'): raise error
    assert ended.value.code == 2 and 'not enough memory. Ask for less at a time, a smaller --batch_size' in capsys.readouterr().err
    with pytest.raises(RuntimeError, match='a fault of ours'):
        with errors_as_sentences('chestnb_train'): raise RuntimeError('a fault of ours')


@pytest.mark.parametrize('words, says', [(['chestnb_phantom', 'new', '--seed', -1], 'seed is -1'), (['chestnb_phantom', 'new', '--size', 100_000], '32 to 4096 pixels'),
                                         (['chestnb_page', 'nowhere', '--serve', 99_999], 'a port from 1 to 65535'), (['chestnb_train', 'cohort', '--mixup', 'inf', '--out', 'new'], '--mixup'),
                                         (['chestnb_train', 'cohort', '--model', 'small', '--fusion_gradient', 0, '--out', 'new'], '--branch_heads yes')])
def test_numbers_that_cannot_be_are_one_sentence_and_nothing_is_made(place, words, says):
    done = typed(*words, cwd=place)
    assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr and not (place/'new').exists(), done.stderr


def test_a_single_branch_and_a_loss_are_chosen_in_the_terminal(place):
    done = typed('chestnb_train', 'cohort', '--out', 'single', '--model', 'small', '--branches', 'test_resnet', '--loss', 'focal', '--weight-decay', .1, '--epochs', 1, '--image-size', 32, cwd=place)
    assert done.returncode == 0, done.stderr
    config = json.loads((place/'single'/'config.json').read_text())['config']
    assert (config['model']['branches'], config['loss'], config['weight_decay']) == (['test_resnet'], 'focal', .1)
    wrong = typed('chestnb_train', 'cohort', '--out', 'never', '--loss', 'squared', cwd=place)
    assert wrong.returncode == 2 and 'bce' in wrong.stderr and 'Traceback' not in wrong.stderr and not (place/'never').exists()


@pytest.mark.parametrize('name', ['labels.csv.gz', 'labels.CSV', 'labels.parquet', 'labels.tsv'])
def test_a_table_of_labels_may_be_any_kind_of_table(place, name):
    "`--data x.csv.gz`, `.parquet` and `.CSV` were taken for folders"
    frame = pd.read_csv(place/'cohort'/'data.csv', dtype=str)
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow', reason='pandas reads Parquet with pyarrow, which is not installed')
        frame.to_parquet(place/name)
    else: frame.to_csv(place/name, index=False, sep='\t' if name.endswith('tsv') else ',')
    half = pd.DataFrame({'Image Index': frame['Image Index'], **{f'prob_{finding}': [i/len(frame) for i in range(len(frame))] for finding in FINDINGS}})
    half.to_csv(place/'ramp.csv', index=False)
    done = typed('chestnb_evaluate', 'ramp.csv', '--data', name, '--out', f'scored_{name}', cwd=place)
    assert done.returncode == 0 and f'{len(frame):,} ' in done.stdout, done.stderr
    assert typed('chestnb_evaluate', 'ramp.csv', '--data', f'no_{name}', '--out', 'nothing', cwd=place).stderr.count(f'no_{name}') == 1


@pytest.mark.parametrize('command', [
    ['chestnb_check', '--data', 'nowhere'], ['chestnb_demo', '--data', 'nowhere'],
    ['chestnb_train', '--out', 'run', '--data', 'nowhere'], ['chestnb_evaluate', 'none.csv', '--out', 'out']])
def test_a_missing_folder_or_file_is_one_sentence_and_exit_code_2(place, command):
    done = typed(*command, cwd=place)
    assert done.returncode == 2, done.stderr
    assert ('nowhere' in done.stderr or 'none.csv' in done.stderr) and 'Traceback' not in done.stderr
    assert not (place/'run').exists() and not (place/'out').exists()


def test_a_truncated_image_is_named(place):
    shutil.copytree(place/'cohort', place/'broken')
    image = sorted((place/'broken'/'images').iterdir())[3]
    image.write_bytes(image.read_bytes()[:200])
    done = typed('chestnb_check', '--data', 'broken', cwd=place)
    assert done.returncode == 2 and image.name in done.stderr


def test_train_resume_evaluate(place):
    words = ['chestnb_train', '--out', 'one', '--data', 'cohort', '--epochs', 1, '--image_size', 32]
    first = typed(*words, cwd=place)
    assert first.returncode == 0, first.stderr
    model = json.loads((place/'one'/'config.json').read_text())['config']['model'] # what is trained if nobody names a model
    assert model['views'] == ['whole', 'lungs'] and model['branches'] == ['tf_efficientnet_lite0']*2 and 'none is kept for a test' in first.stdout
    assert len(pd.read_csv(place/'one'/'history.csv')) == 1
    twice = typed(*words, cwd=place)
    assert twice.returncode == 2 and 'resume' in twice.stderr
    assert typed(*words, '--resume', cwd=place).returncode == 0


def test_demo_leaves_the_results_and_may_be_repeated(place):
    words = ['chestnb_demo', '--data', 'cohort', '--model', 'small', '--epochs', 1, '--image_size', 32]
    done = typed(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    run = place/'runs'/'cohort'
    for name in ('train_val_loss.png', 'train_val_auc.png', 'roc.png'):
        assert (run/name).read_bytes()[:4] == b'\x89PNG'
    comparison = pd.read_csv(run/'comparison.csv')
    assert len(comparison) == 4, 'fusion, two branches, baseline'
    assert len(pd.read_csv(run/'metrics.csv')) >= 14
    assert json.loads((run/'summary.json').read_text())['parts']['test']['patients'] > 0
    assert 'not be used for diagnosis' in done.stdout and 'synthetic' in done.stdout
    (run/'metrics.json').unlink()   # as an older version left it
    again = typed(*words, cwd=place)
    assert again.returncode == 0 and (run/'metrics.json').exists(), again.stderr
    again = typed(*words, cwd=place)
    assert again.returncode == 0 and len(pd.read_csv(run/'fusion'/'history.csv')) == 1
    scored = typed('chestnb_evaluate', run/'fusion'/'test_predictions.csv', '--out', 'scored', '--data', 'cohort', cwd=place)
    assert scored.returncode == 0, scored.stderr
    pd.testing.assert_frame_equal(pd.read_csv(place/'scored'/'metrics.csv')[['finding', 'auroc']],
                                  pd.read_csv(run/'metrics.csv')[['finding', 'auroc']])


def test_evaluate_does_not_overwrite_the_scores_of_other_predictions(root, tmp_path):
    fusion, alone = (root/'nbs'/'results'/'embedded'/name/'test_predictions.csv' for name in ('fusion', 'tf_efficientnet_lite0_on_lungs_alone'))
    words = ['--out', 'scores', '--data', root/'dataset']
    first = typed('chestnb_evaluate', fusion, *words, cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path/'scores').iterdir()}
    assert first.returncode == 0 and set(before) == {'metrics.csv', 'metrics.json', 'roc.png'}, first.stderr
    assert typed('chestnb_evaluate', fusion, *words, cwd=tmp_path).returncode == 0, 'the same command may be typed twice'
    other = typed('chestnb_evaluate', alone, *words, cwd=tmp_path)
    assert other.returncode == 2 and 'Traceback' not in other.stderr
    assert 'metrics.csv holds the scores of other predictions' in other.stderr and '--overwrite' in other.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path/'scores').iterdir()} == before
    assert typed('chestnb_evaluate', alone, *words, '--overwrite', cwd=tmp_path).returncode == 0
    assert (tmp_path/'scores'/'metrics.csv').read_bytes() != before['metrics.csv']


def test_demo_does_not_overwrite_what_another_command_left(place):
    (place/'foreign').mkdir(exist_ok=True)
    (place/'foreign'/'metrics.csv').write_text('mine')
    done = typed('chestnb_demo', '--data', 'cohort', '--out', 'foreign', '--epochs', 1, '--image_size', 32, cwd=place)
    assert done.returncode == 2 and 'metrics.csv exists' in done.stderr and '--out' in done.stderr
    assert [path.name for path in (place/'foreign').iterdir()] == ['metrics.csv']


@pytest.fixture(scope='module')
def nameless(place):
    "The tiny data set with nobody's name, a published split of it, and predictions of its images."
    shutil.copytree(place/'cohort', place/'nameless')
    table = pd.read_csv(place/'nameless'/'data.csv', dtype=str)
    table.assign(**{'Patient ID': ''}).to_csv(place/'nameless'/'data.csv', index=False)
    parts = ['train', 'valid', 'test'] * len(table)
    pd.DataFrame({'image': table['Image Index'], 'patient_id': '', 'part': parts[:len(table)]}).to_csv(place/'published.csv', index=False)
    pd.DataFrame({'Image Index': table['Image Index'], **{f'prob_{finding}': .5 for finding in FINDINGS}}).to_csv(place/'half.csv', index=False)
    return place/'nameless'


@pytest.mark.parametrize('words', [
    ['chestnb_demo', '--epochs', 1], ['chestnb_demo', '--epochs', 1, '--split', 'published.csv'],
    ['chestnb_evaluate', 'half.csv'], ['chestnb_report', 'half.csv', '--n_resamples', 10]])
def test_unknown_patients_are_said_at_once_and_without_a_warning(nameless, words):
    done = typed(*words, '--data', 'nameless', '--out', 'nobody', cwd=nameless.parent)
    assert done.returncode == 2 and 'patients of these' in done.stderr and 'images are unknown' in done.stderr, done.stderr
    assert 'Warning' not in done.stderr and '0 patients' not in done.stdout + done.stderr and 'Traceback' not in done.stderr
    assert not (nameless.parent/'nobody').exists()


def test_evaluate_the_published_predictions(shared_nih, tmp_path):
    done = typed('chestnb_evaluate', shared_nih/'chexnet_predictions.csv', '--out', 'out', '--data', 'nih', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path/'out'/'metrics.csv').set_index('finding')
    assert abs(scores.loc['macro', 'auroc'] - .838) < .001


def test_training_leaves_nihs_official_test_patients_alone():
    "`chestnb_train` learns from every patient, but not from the official test list of the whole data set"
    from types import SimpleNamespace
    from chestnb.commands.train import choose_split, usual_split
    from chestnb.data.nih import is_official_test, nih_metadata
    whole = nih_metadata()
    assert usual_split(SimpleNamespace(table=whole)) == 'official'
    some = whole[whole.patient_id.isin(whole.patient_id.unique()[::10])]
    assert usual_split(SimpleNamespace(table=some)) == 'no_test' and is_official_test(some).any()
    assert set(choose_split(SimpleNamespace(table=some), 'no_test').part) == {'train', 'valid'}
