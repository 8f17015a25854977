"""Pages of the site that are made from the notebooks and modules: sidebar, API index, commands, course map: python tools/make_pages.py

`make readme` writes them, `make test` compares them. They read source text only, except for the --help of each command.
"""
import ast
import io
import os
import re
import sys
from configparser import ConfigParser
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import nbformat

from make_map import NBS, PACKAGES, ROOT, modules

NOTE = '<!-- Made by `make readme`: change the notebooks, not this file. -->'
HELP_WIDTH = '88' # Columns of the --help texts; what argparse wraps to
CHAPTERS = {'Install and run': ('chestnb_demo', 'chestnb_check'), 'Bring your own data': ('chestnb_import', 'chestnb_audit', 'chestnb_lungs', 'chestnb_pack'),
            'Fetch or draw data': ('chestnb_nih', 'chestnb_chestmnist', 'chestnb_phantom'), 'Train and evaluate': ('chestnb_train', 'chestnb_evaluate', 'chestnb_report'),
            'Use a model': ('chestnb_predict', 'chestnb_export', 'chestnb_page')}

COLAB = 'https://colab.research.google.com/github/chestnb/chestnb/blob/main/nbs'
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
MAP_START, MAP_END = '<!-- course map: made by `make readme` -->', '<!-- end of the course map -->'
QUESTIONS = { # What each lesson asks first, in a few words
    '00': 'Of six X-rays labelled Pneumothorax, how many do radiologists confirm?',
    '01': 'How accurate is a model that always says no?',
    '02': 'One model, the same X-rays, two scores: which should a hospital expect?',
    '03': 'Which of four changed copies could be a picture of a real patient?',
    '04': 'Does a second network pay, or a second view?',
    '05': 'From scratch or from ImageNet: which is ahead after two epochs, and by how much?',
    '06': 'Model B is better. How many of 100 hospitals would buy A?',
    '07': 'Where a model says 30 %, how often is the finding there?',
    '08': 'Which map hits the boxes more often: the network\'s, or one that never looks?',
    '09': 'Both lungs are painted grey. How much does a network still see?',
    '10': 'How sure is a model of fourteen findings about a photograph of a cat?'}


@dataclass
class Name:
    "One public name of a module."
    name: str          # As it is imported
    text: str          # First line of its docstring, or the comment behind a constant
    is_constant: bool  # Assigned, not defined
    has_heading: bool = True # Documented on its page; nbdev leaves out functions that fastai chooses by type


def title_of(path):
    "Title of a notebook or page, without the dot between number and words."
    if path.suffix == '.ipynb': return re.match(r'# (.+)', nbformat.read(path, as_version=4).cells[0].source)[1].replace(' · ', ' ')
    return re.search(r'^title: "?(.+?)"?$', path.read_text(encoding='utf-8'), re.M)[1]


def public_names(module):
    "The public names of a module, in the order of its file."
    path = ROOT/'chestnb'/(module.replace('.', '/') + '.py')
    source = path.read_text(encoding='utf-8')
    body, lines = ast.parse(source).body, source.splitlines()
    listed = next((ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    found = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = Name(node.name, (ast.get_docstring(node) or '').split('\n')[0], False, not any('dispatch' in ast.unparse(d) for d in node.decorator_list))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            comment = re.search(r'\s#+\s*(.+)$', lines[node.end_lineno - 1]) or re.search(r'\s#\s*(.+)$', lines[node.lineno - 1])
            for target in getattr(node, 'targets', None) or [node.target]:
                for part in getattr(target, 'elts', [target]):
                    if isinstance(part, ast.Name): found[part.id] = Name(part.id, comment[1] if comment else '', True)
    return [found[name] for name in found if name in listed]


def entries(pages, depth):
    "Lines of sidebar.yml for pages with a short text: (text, path)."
    return [line for text, page in pages for line in (f'{"  "*depth}- text: "{text}"', f'{"  "*depth}  href: {page}')]


def section(title, inside, depth):
    "Lines of sidebar.yml for one section."
    return [f'{"  "*depth}- section: "{title}"', f'{"  "*depth}  contents:', *inside]


def sidebar_text():
    "The sidebar: start, lessons, exercises, library package by package, commands, results, cards."
    lessons = [(title_of(p), p.name) for p in sorted(NBS.glob('[0-9][0-9]_*.ipynb'))]
    titles = {page.removesuffix('.ipynb'): text for text, page in lessons}
    made = {kind: [(titles[p.stem.removesuffix(f'_{kind}')], f'exercises/{p.name}') for p in sorted((NBS/'exercises').glob(f'*_{kind}.ipynb'))] for kind in ('ex', 'sol')}
    library = {name: path.as_posix() for name, (path, _) in modules().items() if path.parts[0] == 'api'}
    lines = ['# Made by `make readme` from the notebooks', 'website:', '  sidebar:', '    style: floating', '    collapse-level: 2', '    contents:']
    lines += entries([('Start here', 'index.ipynb')], 3) + section('Lessons', entries(lessons, 5), 3)
    exercises = [section(title, entries(made[kind], 7), 5) for kind, title in (('ex', 'With blanks'), ('sol', 'Solutions')) if made[kind]]
    if exercises: lines += section('Exercises', sum(exercises, []), 3)
    packages = [section(title, entries([(name.split('.', 1)[1], page) for name, page in library.items() if name.split('.')[0] == package], 7), 5) for package, title in PACKAGES.items()]
    lines += section('Library', entries([('API index', 'api/index.qmd')], 5) + sum(packages, []) + entries([(name, page) for name, page in library.items() if name.split('.')[0] not in PACKAGES], 5), 3)
    lines += entries([('Try it', 'try.qmd'), ('Commands', 'commands.qmd'), ('Results', 'results.ipynb'), ('All of NIH on one GPU', 'nih_recipe.ipynb')], 3)
    return '\n'.join(lines + section('Cards', entries([('Data card', 'data_card.qmd'), ('Model card', 'model_card.qmd')], 5), 3)) + '\n'


def marked(text):
    "A docstring as Markdown: what would be read as a mark is written as it is."
    return re.sub(r'([*_<>\[\]|])', r'\\\1', text) if '`' not in text else '`'.join(part if i % 2 else re.sub(r'([*_<>\[\]|])', r'\\\1', part) for i, part in enumerate(text.split('`')))


def api_module(name, path, subtitle, used):
    "One module of the API index: a heading, then a heading and a sentence for each public name."
    page = f'../{path.as_posix()}'
    lines = [f'# {name} {{#{name.replace(".", "-")} .api-module}}', '', f'[{marked(subtitle)}]({page}). `from chestnb.{name} import ...`', '']
    names = public_names(name)
    constants = [f'`{n.name}`{f" ({marked(n.text)})" if n.text else ""}' for n in names if n.is_constant]
    if constants: lines += ['::: {.api-constants}', '', f'Constants: {", ".join(constants)}.', '', ':::', '']
    for n in names:
        if n.is_constant: continue
        label = n.name if n.name.lower() not in used else f'{name.replace(".", "-")}-{n.name}'
        used.add(n.name.lower())
        lines += [f'## [{n.name}]({page}{"#" + n.name.lower() if n.has_heading else ""}) {{#{label.lower()} .api-name}}', '', marked(n.text) or '(no description)', '']
    return lines


def api_text():
    "The API index."
    everything = {name: (path, subtitle) for name, (path, subtitle) in modules().items() if name != 'all'}
    homes = {n.name: name for name in everything for n in public_names(name)}
    everyday = [m for m in re.findall(r"'(\w+)'", (ROOT/'chestnb'/'all.py').read_text(encoding='utf-8').split('__all__')[1].split(']')[0])]
    count = sum(len(public_names(name)) for name in everything)
    lines = ['---', 'title: "API index"', 'description: "Every public name of chestnb, module by module, with the first line of its description."', 'toc-depth: 1', 'number-sections: false', '---', '', NOTE, '',
             f'{count:,} public names in {len(everything)} modules. A name leads to its definition. Imports point down: core, data, then model and evaluation, then using, then commands; evaluation needs neither a model nor torch.', '',
             f'`from chestnb.all import *` ([all](all.ipynb)) gives the names that one types most: ' + ', '.join(f'[`{n}`](../{everything[homes[n]][0].as_posix()}#{n.lower()})' if not n.isupper() else f'[`{n}`](../{everything[homes[n]][0].as_posix()})' for n in sorted(everyday, key=str.lower)) + '.', '']
    used = set()
    for name, (path, subtitle) in everything.items(): lines += api_module(name, path, subtitle, used)
    return '\n'.join(lines).rstrip() + '\n'


def scripts():
    "Command -> function, as settings.ini names them."
    settings = ConfigParser(delimiters=['='], strict=False)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    return dict(line.strip().split('=', 1) for line in settings['DEFAULT']['console_scripts'].split())


def help_of(name, place):
    "What a command prints for --help on a terminal of HELP_WIDTH columns."
    module, function = place.split(':')
    before, shown = (os.environ.get('COLUMNS'), sys.argv), io.StringIO()
    os.environ['COLUMNS'], sys.argv = HELP_WIDTH, [name, '--help']
    try:
        with redirect_stdout(shown): getattr(import_module(module), function)()
    except SystemExit: pass
    finally:
        sys.argv = before[1]
        os.environ.pop('COLUMNS') if before[0] is None else os.environ.update(COLUMNS=before[0])
    return '\n'.join(line.rstrip() for line in shown.getvalue().rstrip().splitlines())


def commands_text():
    "The page of commands."
    known = scripts()
    lines = ['---', 'title: "Commands"', 'description: "What you type in a terminal: every command with its --help."', '---', '', NOTE, '',
             'Every command takes its main argument with or without its name (`chestnb_check DIR` is `chestnb_check --data DIR`), dashes for underscores (`--image-size`), and ends a mistake with one sentence and exit code 2. None is for clinical use.', '']
    for chapter, names in CHAPTERS.items():
        lines += [f'## {chapter}', '']
        for name in names: lines += [f'### {name} {{#{name}}}', '', '```text', help_of(name, known[name]), '```', '']
    lacking = set(known) - {n for names in CHAPTERS.values() for n in names}
    assert not lacking, f'tools/make_pages.py: no chapter has {", ".join(lacking)}'
    return '\n'.join(lines).rstrip() + '\n'


def minutes_of(path):
    "Stated times of a lesson: minutes to read, its words for the time to run, minutes for the exercises (0 if it says nothing); None where it states none."
    text = '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells[:8])
    stated = re.search(r'\*\*Time\.\*\* About (\d+) minutes to read and (\d+) (seconds|minutes?) to run', text)
    exercises = re.search(r'exercises? takes? (?:another |about )*(\d+) minutes', text)
    return (int(stated[1]), f'{stated[2]} {"s" if stated[3] == "seconds" else "min"}', int(exercises[1]) if exercises else 0) if stated else None


def badge(page): return f'[![Open in Colab]({BADGE})]({COLAB}/{page})'


def course_map():
    "The table of lessons on the start page."
    paths = sorted(NBS.glob('[0-9][0-9]_*.ipynb'))
    lines, total = ['| Lesson | It asks | Read, run | Lesson in Colab | Exercises | Exercises in Colab |', '|---|---|---|---|---|---|'], 0
    for path in paths:
        time, exercise = minutes_of(path), f'exercises/{path.stem}_ex.ipynb'
        total += time[0] if time else 0
        made = (NBS/exercise).is_file()
        lines.append(f'| [{title_of(path)}]({path.name}) | {QUESTIONS.get(path.stem[:2], "")} | {f"{time[0]} min, {time[1]}" if time else ""} | {badge(path.name)} '
                     f'| {f"[blank]({exercise}), [solved](exercises/{path.stem}_sol.ipynb)" if made else ""} | {badge(exercise) if made else ""} |')
    times = [minutes_of(path) for path in paths]
    exercises = sum(t[2] for t in times)/60 if all(t and t[2] for t in times) else 0
    said = f'\n\nReading the {len(paths)} lessons takes about {total/60:.0f} hours{f", the exercises about {exercises:.0f} more" if exercises else ""}; times to run are on two CPU cores.' if all(times) else ''
    return '\n'.join([MAP_START, '', *lines]) + said + f'\n\n{MAP_END}'


def index_text():
    "The start page with today's course map."
    path = NBS/'index.ipynb'
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if MAP_START in cell.source: cell.source = cell.source.split(MAP_START)[0] + course_map() + cell.source.split(MAP_END)[1]
    return nbformat.writes(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def wanted():
    "Path -> text of every page that is made here."
    return {NBS/'index.ipynb': index_text(), NBS/'sidebar.yml': sidebar_text(), NBS/'api'/'index.qmd': api_text(), NBS/'commands.qmd': commands_text()}


if __name__ == '__main__':
    for path, text in wanted().items(): path.write_text(text, encoding='utf-8')
