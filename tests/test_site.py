"""The site, as far as it can be checked without Quarto; tools/check.py site looks at the pages that nbdev makes."""
import json
import re
import sys
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
sys.path.insert(0, str(ROOT/'tools'))
import make_pages   # noqa: E402
import make_readme  # noqa: E402
import site_checks  # noqa: E402
import site_pages   # noqa: E402

CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
PROJECT = yaml.safe_load((NBS/'_quarto.yml').read_text(encoding='utf-8'))
CSS = (NBS/'styles.css').read_text(encoding='utf-8')
NOTEBOOKS = sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(NBS).parts))
PAGES = set(NOTEBOOKS) | {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.qmd')} - {'404.qmd'}


def sidebar(item=None):
    "Every (text, href) of the sidebar."
    item = yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar'] if item is None else item
    return [pair for entry in item['contents'] for pair in (sidebar(entry) if 'contents' in entry else [(entry['text'], entry['href'])])]


# The configuration

def test_files_that_the_configuration_names_are_there():
    website, html = CONFIG['website'], CONFIG['format']['html']
    named = [website['favicon'], website['image'], html['css'], *PROJECT['project']['resources']]
    named += [name for theme in html['theme'].values() for name in theme if name.endswith('.scss')]
    assert all((NBS/name).is_file() for name in named), named
    assert list(CONFIG['format']) == ['html'], 'commonmark and keep-md wrote the same files'
    assert 'keep-md' not in html


def hrefs(value):
    "Every href below a value of the configuration."
    if isinstance(value, dict): return [h for h in [value.get('href')] if h] + [h for v in value.values() for h in hrefs(v)]
    return [h for v in value for h in hrefs(v)] if isinstance(value, list) else []


def test_links_of_the_navbar_lead_somewhere():
    targets = hrefs(CONFIG['website']['navbar'])
    assert 'api/index.qmd' in targets and 'https://github.com/chestnb/chestnb' in targets
    assert all((NBS/t).is_file() for t in targets if not t.startswith('https:')), targets
    assert all('aria-label' in item for item in CONFIG['website']['navbar']['right'] if 'icon' in item)


def luminance(colour):
    parts = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    return sum(w*(p/12.92 if p <= .03928 else ((p + .055)/1.055)**2.4) for w, p in zip((.2126, .7152, .0722), parts))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05)/(low + .05)


def test_contrast_of_the_navbar_and_of_dark_mode():
    navbar = CONFIG['website']['navbar']
    assert contrast(navbar['background'], navbar['foreground']) >= 4.5
    dark = dict(re.findall(r'^\$([\w-]+): (#\w{6}) !default;', (NBS/'dark.scss').read_text(encoding='utf-8'), re.M))
    for name in ('body-color', 'link-color', 'code-color', 'text-muted', 'table-color', 'footer-fg'): assert contrast(dark[name], dark['body-bg']) >= 4.5, name


def test_outputs_wrap_and_tables_scroll_inside_themselves():
    rule = re.search(r'^([^{}]*\.cell-output pre[^{}]*)\{([^}]*)\}', CSS, re.M)
    assert 'white-space: pre-wrap' in rule[2] and 'overflow-wrap: anywhere' in rule[2]
    table = re.search(r'^main table, main table.table \{([^}]*)\}', CSS, re.M)[1]
    assert 'overflow-x: auto' in table and 'max-width: 100%' in table
    assert CSS.count('border-left') == 1, 'the bar beside an output is drawn once'


def test_search_and_reading_aids_are_on():
    website = CONFIG['website']
    assert website['reader-mode'] and website['page-navigation'] and website['navbar']['search'] and website['open-graph'] and website['twitter-card']
    assert set(CONFIG['format']['html']['theme']) == {'light', 'dark'}


# Navigation

def test_the_sidebar_names_every_page_once():
    found = [href for _, href in sidebar()]
    assert sorted(found) == sorted(PAGES)


def test_names_in_the_sidebar_are_short():
    assert max(len(text) for text, _ in sidebar()) <= 40
    assert not [text for text, _ in sidebar() if 'Appendix' in text or '`' in text]


# Pages that are made

def test_made_pages_are_up_to_date():
    "The page of commands is compared by tools/check.py readme, which has the terminal's width to itself."
    for path, text in make_pages.wanted().items(): assert path.name == 'commands.qmd' or path.read_text(encoding='utf-8') == text, f'{path.name}: make readme'


def test_the_api_index_has_every_public_name():
    text = (NBS/'api'/'index.qmd').read_text(encoding='utf-8')
    for module in make_pages.modules():
        if module == 'all': continue
        start = text.index(f'# {module} {{')
        part = text[start:].split('\n# ', 1)[0]
        for name in make_pages.public_names(module): assert f'`{name.name}`' in part or f'## [{name.name}](' in part, f'{module}.{name.name}'


def test_a_name_of_the_api_index_leads_to_its_definition():
    text = (NBS/'api'/'index.qmd').read_text(encoding='utf-8')
    assert '## [patient_split](../02_split.ipynb#patient_split) {#patient_split .api-name}' in text
    assert len(re.findall(r'^## ', text, re.M)) == len(set(re.findall(r'^## .*\{#(\S+) ', text, re.M)))


def test_most_public_names_are_described():
    names = [n for module in make_pages.modules() for n in make_pages.public_names(module) if not n.is_constant]
    bare = [n.name for n in names if not n.text]
    assert len(bare) <= .01*len(names), bare


def test_the_page_of_commands_has_each_with_its_options():
    text = (NBS/'commands.qmd').read_text(encoding='utf-8')
    for name in make_pages.scripts():
        assert f'### {name} ' in text and f'usage: {name} ' in text
    assert '--valid' in text and '/work' not in text and '/root' not in text


def test_the_course_map_has_every_lesson_with_badges():
    text = make_pages.course_map()
    for path in sorted(NBS.glob('[0-9][0-9]_*.ipynb')):
        row = next(line for line in text.splitlines() if f']({path.name})' in line)
        assert f'{make_pages.COLAB}/{path.name}' in row and '?' in row
        if (NBS/'exercises'/f'{path.stem}_ex.ipynb').is_file(): assert f'{make_pages.COLAB}/exercises/{path.stem}_ex.ipynb' in row and f'{path.stem}_sol.ipynb' in row


def test_the_start_page_has_the_course_before_commands_and_figures():
    found = re.findall(r'^## (.+)$', '\n'.join(c.source for c in nbformat.read(NBS/'index.ipynb', as_version=4).cells if c.cell_type == 'markdown'), re.M)
    assert found.index('Start here') < found.index('The course') < found.index('Install') < found.index('Commands') < found.index('What `make demo` shows')


def test_the_readme_keeps_install_and_test_commands():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    for line in ('make demo', 'make test', 'pip install -c constraints.txt', 'tools/check.py all', 'Not for clinical use'): assert line in text, line
    assert 'fig-alt' not in text and re.search(r'!\[[^\]]+\]\(nbs/results/embedded/roc\.png\)', text)


def test_figures_of_quarto_become_plain_pictures():
    assert make_readme.plain_figures('a ![Loss](x.png){fig-alt="Two curves"} b') == 'a ![Two curves](x.png)\n\n*Loss* b'
    assert make_readme.plain_figures('![Loss](x.png)') == '![Loss](x.png)'


def test_the_figure_of_the_start_page_shows_the_scores_of_today():
    "Run tools/make_images.py when nbs/results/embedded/comparison.csv has changed."
    with Image.open(NBS/'images'/'course.png') as figure: source = figure.info['Source']
    with Image.open(NBS/'images'/'social.png') as card: assert card.size == (1200, 630)
    assert source == sha256((NBS/'results'/'embedded'/'comparison.csv').read_bytes()).hexdigest()


def test_llms_txt_names_pages_that_are_made():
    "nbdev leaves the number of a lesson out of its address."
    made = {re.sub(r'^(.*/)?\d+_', r'\1', name).rsplit('.', 1)[0] + '.html' for name in PAGES}
    found = re.findall(r'https://chestnb\.github\.io/chestnb/(\S+?\.html)', (NBS/'llms.txt').read_text(encoding='utf-8'))
    assert len(found) > 10 and set(found) <= made, set(found) - made


def test_the_model_card_and_the_start_page_agree():
    card = (NBS/'model_card.qmd').read_text(encoding='utf-8')
    for word in ('calibration', 'thresholds', 'subgroups'): assert f'{word}' in card.split('## What was examined')[1], word
    assert 'has not been examined' not in card


# Mending what nbdev made, and finding what is wrong

PAGE = '''---

[source](https://github.com/chestnb/chestnb/blob/main/chestnb/data/x.py#L1){target="_blank"}

### cut

```python
def cut(
    split, # From [`patient_split`](https://chestnb.github.io/chestnb/split.html#patient_split)
)
```

*As [`patient_split`](https://chestnb.github.io/chestnb/split.html#patient_split) and [`_fill`](https://chestnb.github.io/chestnb/split.html#_fill).*'''


def made_page(path, source, outputs=(), code='show_doc(cut)', output_file='x.html'):
    "A processed notebook, as nbdev writes it."
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell_type='raw', source=f'---\noutput-file: {output_file}\ntitle: X\n---\n', metadata={}), dict(cell_type='markdown', source=source, metadata={}),
             dict(cell_type='code', source=code, metadata={}, outputs=list(outputs))]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8')


@pytest.fixture
def folder(tmp_path):
    "A small site: a lesson with a definition, and a module page that names it."
    made_page(tmp_path/'02_split.ipynb', '## Splits\n\n### patient_split\n\nText.', output_file='split.html')
    made_page(tmp_path/'api'/'data'/'x.ipynb', 'See [splits](../../02_split.ipynb#splits).',
              [dict(output_type='display_data', data={'text/markdown': PAGE}), dict(output_type='stream', name='stderr', text='/root/x.py: warning')],
              code='#| code-fold: show\n#| code-summary: "Exported source"\ndef cut(split): ...')
    (tmp_path/'sidebar.yml').write_text('href: 02_split.ipynb\nhref: api/data/x.ipynb\n')
    return tmp_path


def test_mended_pages_have_no_links_in_code_and_none_that_lead_nowhere(folder):
    assert site_checks.problems(folder, []) != []
    site_pages.mend(folder)
    page = json.loads((folder/'api'/'data'/'x.ipynb').read_text())
    text = page['cells'][2]['outputs'][0]['data']['text/markdown']
    assert '# From `patient_split`' in text and '[`patient_split`](../../02_split.ipynb#patient_split)' in text and '`_fill`.' in text and site_pages.SITE not in text
    assert '\n## cut' in text, 'a definition stands one level below the title of its page'
    assert page['cells'][2]['source'].startswith('#| code-fold: true') and len(page['cells'][2]['outputs']) == 1
    assert site_checks.problems(folder, []) == []


def test_a_name_inside_a_written_link_is_no_second_link(folder):
    made_page(folder/'api'/'data'/'x.ipynb', f'See [what [`patient_split`]({site_pages.SITE}split.html#patient_split) does](../../02_split.ipynb).')
    site_pages.mend(folder)
    assert 'See [what `patient_split` does](../../02_split.ipynb).' in (folder/'api'/'data'/'x.ipynb').read_text()


def test_what_nbdev_leaves_out_is_put_back_where_it_was(tmp_path):
    "Imports are shown, the library's source is folded behind its description, and %cd stays."
    cells = [('#| export\nimport numpy as np', 'a1'), ('Words.', 'a2'), ('#| export\ndef cut(split):\n    "Cut."\n    return np.array(split)', 'a3'), ('cut(1)\n%cd x', 'a4')]
    source = dict(cells=[dict(cell_type='markdown' if text == 'Words.' else 'code', id=name, source=text) for text, name in cells])
    page = dict(cells=[dict(cell_type='raw', source='---\n---'), dict(cell_type='markdown', source='<!-- -->'), dict(cell_type='markdown', id='a2', source='Words.'),
                       dict(cell_type='code', id='zz', source='#| output: asis\nshow_doc(cut)', outputs=[]), dict(cell_type='code', id='a4', source='cut(1)', outputs=[])])
    site_pages.put_back(page, source, is_library=True)
    assert [c.get('id') for c in page['cells']] == [None, None, 'a1', 'a2', 'zz', 'a3', 'a4']
    assert page['cells'][6]['source'] == 'cut(1)\n%cd x'
    assert page['cells'][2]['source'] == '#| code-fold: true\n#| code-summary: "Imports"\nimport numpy as np'
    assert page['cells'][5]['source'].startswith('#| code-fold: true\n#| code-summary: "Source"\ndef cut(split)')


@pytest.mark.parametrize('source, said', [('[a](gone.ipynb)', 'has no target'), ('[a](../../02_split.ipynb#gone)', 'has no such heading'), ('![](../../02_split.ipynb)', 'no alternative text'),
                                          ('## A\n\n#### B', 'goes from level 2 to 4'), ('<img src="../../02_split.ipynb">', 'no alternative text'), ('[a [b](../../02_split.ipynb)](../../02_split.ipynb)', 'link inside a link'), ('[a](https://chestnb.github.io/chestnb/split.html)', 'published site')])
def test_mistakes_in_text_are_found(folder, source, said):
    made_page(folder/'api'/'data'/'x.ipynb', source)
    assert any(said in problem for problem in site_checks.problems(folder, [])), site_checks.problems(folder, [])


@pytest.mark.parametrize('output, said', [(dict(output_type='stream', name='stdout', text='see /home/me/x'), 'path of this machine'), (dict(output_type='stream', name='stdout', text='x'*200), 'a word of 200'),
                                          (dict(output_type='display_data', data={'image/png': 'x'}), 'without fig-alt'), (dict(output_type='stream', name='stderr', text='x'), 'stderr')])
def test_mistakes_in_outputs_are_found(folder, output, said):
    made_page(folder/'api'/'data'/'x.ipynb', 'Text.', [output])
    assert any(said in problem for problem in site_checks.problems(folder, [])), said


def test_a_page_that_is_missing_or_in_no_sidebar_is_found(folder):
    made_page(folder/'new.ipynb', 'Text.')
    said = site_checks.problems(folder, ['gone.ipynb'])
    assert 'new.ipynb: not in the sidebar' in said and 'gone.ipynb: no page was made' in said


@pytest.mark.parametrize('title, wanted', [('ChestDataset.mask', 'chestdataset.mask'), ('_fill', 'fill'), ('12 · Why? `x_y` and more', 'why-x_y-and-more'), ('A [link](x) here', 'a-link-here')])
def test_ids_of_headings_are_those_of_pandoc(title, wanted): assert site_pages.identifier(title) == wanted
