"""What a reader of the site would stumble over, looked for in the processed and mended pages (no Quarto needed): problems(folder)."""
import json
import re
from pathlib import Path

from site_pages import SITE, headings, identifiers, lines_of, page_address, text_of, texts

LONGEST_WORD = 160 # Characters; lines wrap, a longer word too (styles.css), but nobody reads that
MACHINE_PATH = re.compile(r'/(root|home|tmp|work|Users)/')
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)(?:\s+"[^"]*")?\)(?:\{([^}]*)\})?')
TAG = re.compile(r'<(a|img)\b([^>]*)>')
ELSEWHERE = re.compile(r'[a-z][a-z+.-]*:')


def prose(text):
    "The text without code blocks and without code in backticks."
    return re.sub(r'`[^`\n]*`', '`code`', '\n'.join(line for line, fenced in lines_of(text) if not fenced))


def read_pages(folder):
    "Path -> (texts, ids, cells) of every page, notebooks and Quarto documents."
    pages = {}
    for path in sorted(p for p in folder.rglob('*') if p.suffix in ('.ipynb', '.qmd')):
        if path.suffix == '.qmd': parts, cells, address = [path.read_text(encoding='utf-8').split('---', 2)[-1]], [], path.relative_to(folder).with_suffix('.html').as_posix()
        else:
            page = json.loads(path.read_text(encoding='utf-8'))
            parts, cells, address = [text_of(holder[key]) for holder, key in texts(page)], page['cells'], page_address(path, folder, page)
        pages[path] = dict(parts=parts, ids=set(identifiers(parts)), cells=cells, address=address)
    return pages


def wrong_link(target, path, folder, pages):
    "What is wrong with a link, or nothing."
    if target.startswith(SITE): return 'names the published site'
    if ELSEWHERE.match(target): return ''
    file, _, anchor = target.partition('#')
    place = (path.parent/file).resolve() if file else path
    place = next((p for p, page in pages.items() if folder/page['address'] == place), place)
    if not place.exists(): return 'has no target'
    if anchor and place in pages and anchor not in pages[place]['ids']: return 'has no such heading'
    return ''


def link_problems(path, folder, pages):
    "Links and pictures of one page that lead nowhere, and pictures without a description."
    for text in pages[path]['parts']:
        if SITE in '\n'.join(line for line, fenced in lines_of(text) if fenced and '](' in line): yield 'a link inside code'
        plain = prose(text)
        for picture, words, target, attributes in LINK.findall(plain):
            if wrong := wrong_link(target, path, folder, pages): yield f'{target} {wrong}'
            if picture and not (words.strip() if 'fig-alt' not in attributes else re.search(r'fig-alt="[^"]+"', attributes)): yield f'{target} has no alternative text'
            for inner in LINK.findall(words):
                if inner[0] and not inner[1].strip(): yield f'{inner[2]} has no alternative text'
                if not inner[0]: yield f'{inner[2]} is a link inside a link'
        for name, inside in TAG.findall(plain):
            target = re.search(r'(?:href|src)="([^"]+)"', inside)
            if target and (wrong := wrong_link(target[1], path, folder, pages)): yield f'{target[1]} {wrong}'
            if name == 'img' and not re.search(r'alt="[^"]+"', inside): yield f'{target[1] if target else inside} has no alternative text'


def heading_problems(page):
    "Headings that leave out a level, and ids that are there twice."
    level = 1
    for text in page['parts']:
        for depth, title, _ in headings(text):
            if depth > level + 1: yield f'heading "{title}" goes from level {level} to {depth}'
            level = depth


def output_problems(page):
    "Figures without a description, words that no column holds, paths of a machine, and what building printed."
    for cell in page['cells']:
        for output in cell.get('outputs', []):
            data, first = output.get('data', {}), text_of(cell['source'])[:60]
            if 'image/png' in data and '#| fig-alt:' not in text_of(cell['source']): yield f'figure without fig-alt: {first}'
            if output.get('name') == 'stderr' or output['output_type'] == 'error': yield f'stderr or an error: {first}'
            shown = text_of(output.get('text') or data.get('text/html') or data.get('text/markdown') or data.get('text/plain', ''))
            if MACHINE_PATH.search(re.sub(r'https?://\S+', '', shown)): yield f'a path of this machine: {first}'
            if 'text/html' not in data and 'image/png' not in data and 'text/markdown' not in data:
                for word in re.findall(rf'\S{{{LONGEST_WORD + 1},}}', shown): yield f'a word of {len(word)} characters in an output: {word[:40]}'


def problems(folder, notebooks):
    "Sentences, one a problem, for the folder that nbdev_proc_nbs made of `notebooks`."
    folder = Path(folder).resolve()
    pages = read_pages(folder)
    found = [f'{name}: no page was made' for name in notebooks if folder/name not in pages]
    for path, page in pages.items():
        own = [*link_problems(path, folder, pages), *heading_problems(page), *output_problems(page)]
        found += [f'{path.relative_to(folder)}: {problem}' for problem in dict.fromkeys(own)]
    listed = set(re.findall(r'href: (\S+)', (folder/'sidebar.yml').read_text(encoding='utf-8')))
    there = {p.relative_to(folder).as_posix() for p in pages} - {'404.qmd'}
    found += [f'{name}: not in the sidebar' for name in sorted(there - listed)] + [f'sidebar: {name} is no page' for name in sorted(listed - there)]
    return found
