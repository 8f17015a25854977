"""Mend the pages that nbdev_proc_nbs made, before Quarto renders them: python tools/site_pages.py _proc

nbdev links every name in backticks, also inside the code of a signature, where a link is shown as raw text; its links name the published site,
and some have no target; it leaves out cells that are exported without being shown, imports among them, and lines such as %cd. Here code holds no links, links lead from page
to page, a name without a definition on a page is no link, a definition stands one level below its chapter, what was left out is there again
(the library's source folded), and what building printed is not kept.
"""
import ast
import json
import os
import re
import sys
from pathlib import Path

SITE = 'https://chestnb.github.io/chestnb/'
MAGIC = re.compile(r'^\s*%', re.M)
EXPORT = re.compile(r'#\|\s*export\s*$', re.M)
FENCE = re.compile(r'\s*(```|~~~)')
NAME_LINK = re.compile(rf'\[(`[^`\]]+`)\]\({re.escape(SITE)}([^)#\s]*)(?:#([^)\s]*))?\)')
HEADING = re.compile(r'(#{1,6}) +(.*?)\s*(?:\{(.*)\})?\s*$')


def text_of(source): return source if isinstance(source, str) else ''.join(source)


def texts(page):
    "The Markdown texts of a page, in order: (holder, key) pairs, so that they can be changed."
    for cell in page['cells']:
        if cell['cell_type'] == 'markdown': yield cell, 'source'
        for output in cell.get('outputs', []):
            if 'text/markdown' in output.get('data', {}): yield output['data'], 'text/markdown'


def lines_of(text):
    "Lines of a Markdown text: (line, is it inside a code block)."
    fenced = False
    for line in text.split('\n'):
        if FENCE.match(line):
            fenced = not fenced
            yield line, True
        else: yield line, fenced


def identifier(title):
    "The id that Pandoc gives a heading."
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'<[^>]+>', '', title))
    kept = re.sub(r'[^\w\s.-]', '', plain, flags=re.UNICODE).lower()
    return re.sub(r'^[^a-z\u00c0-\uffff]+', '', re.sub(r'\s+', '-', kept.strip())) or 'section'


def headings(text):
    "(level, title, id) of every heading of a Markdown text."
    for line, fenced in lines_of(text):
        found = None if fenced else HEADING.match(line)
        if not found: continue
        stated = re.search(r'#([\w.-]+)', found[3] or '')
        yield len(found[1]), found[2], stated[1] if stated else identifier(found[2])


def identifiers(text_list):
    "Every id of a page; the second heading of one name ends in -1."
    seen = []
    for text in text_list:
        for _, _, name in headings(text):
            count = sum(s == name or re.fullmatch(rf'{re.escape(name)}-\d+', s) is not None for s in seen)
            seen.append(f'{name}-{count}' if count else name)
    return seen


def page_address(path, folder, page):
    "Address of a page below the site, as nbdev and Quarto name it."
    stated = next((m[1] for c in page['cells'] if c['cell_type'] == 'raw' for m in [re.search(r'^output-file: (\S+)', text_of(c['source']), re.M)] if m), None)
    return path.relative_to(folder).with_name(stated or f'{path.stem}.html').as_posix()


def link(match, path, folder, places):
    "A link of nbdev as a link from this page to that one; the name alone if there is no such place."
    name, address, anchor = match.groups()
    before = match.string[:match.start()]
    if before.count('[') > before.count(']'): return name   # inside a link that somebody wrote
    target, known = places.get(address, (None, ()))
    if target is None or (anchor and anchor not in known): return name
    to = '' if target == path else os.path.relpath(target, path.parent).replace(os.sep, '/')
    return f'[{name}]({to}{"#" + anchor if anchor else ""})' if to or anchor else name


def mend_text(text, path, folder, places):
    "One Markdown text without links in code, and with links from page to page."
    return '\n'.join(NAME_LINK.sub(r'\1', line) if fenced else NAME_LINK.sub(lambda m: link(m, path, folder, places), line) for line, fenced in lines_of(text))


def mend_headings(page):
    "A definition is at most one level below the heading before it."
    level = 1
    for holder, key in texts(page):
        lines = []
        for line, fenced in lines_of(text_of(holder[key])):
            found = None if fenced else HEADING.match(line)
            if found:
                if key == 'text/markdown' and len(found[1]) > level + 1: line = '#'*(level + 1) + line[len(found[1]):]
                level = len(HEADING.match(line)[1]) if key == 'source' else max(level, 1)
            lines.append(line)
        holder[key] = '\n'.join(lines)


def mend_code(page, is_library):
    "The library's source is folded; nothing that building the page printed to stderr is kept."
    for cell in page['cells']:
        if cell['cell_type'] != 'code': continue
        if is_library: cell['source'] = re.sub(r'\A#\| code-fold: show\n#\| code-summary: "Exported source"', '#| code-fold: true\n#| code-summary: "Source"', text_of(cell['source']))
        cell['outputs'] = [o for o in cell['outputs'] if o.get('name') != 'stderr']


def defined_in(source):
    "Names of the public functions and classes of a cell."
    try: body = ast.parse(source).body
    except SyntaxError: return set()
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != '_'}


def documented(cell):
    "The name that a cell of nbdev documents."
    found = re.search(r'^show_doc\((\w+)\)', text_of(cell['source']), re.M) if cell['cell_type'] == 'code' else None
    return found[1] if found else None


def put_back(page, source, is_library):
    "Magic commands, and cells that are exported but not on the page, each where it was: folded if they are the library's."
    cells, place = page['cells'], 2   # nbdev begins with the title and a warning
    for cell in source['cells']:
        code, here = text_of(cell['source']), next((i for i, c in enumerate(cells) if c.get('id') and c['id'] == cell.get('id')), None)
        if here is not None:
            if cell['cell_type'] == 'code' and MAGIC.search(code): cells[here]['source'] = code
            place = here + 1
        elif cell['cell_type'] == 'code' and EXPORT.match(code):
            shown = re.sub(r'^#\|.*\n?', '', code, flags=re.M).strip('\n')
            names, is_import = defined_in(shown), re.match(r'(import|from) ', shown)
            place = max([place, *(i + 1 for i, c in enumerate(cells) if documented(c) in names and names)])
            fold = f'#| code-fold: true\n#| code-summary: "{"Imports" if is_import else "Source"}"\n' if is_library else ''
            cells.insert(place, dict(cell_type='code', execution_count=None, id=f'{cell.get("id", place)}', metadata={}, outputs=[], source=fold + shown))
            place += 1


def mend(folder, sources=None):
    "Every page in the folder of nbdev, with the notebooks that it was made from."
    pages = {path: json.loads(path.read_text(encoding='utf-8')) for path in sorted(folder.rglob('*.ipynb'))}
    for path, page in pages.items():
        if sources: put_back(page, json.loads((sources/path.relative_to(folder)).read_text(encoding='utf-8')), 'api' in path.relative_to(folder).parts)
        mend_headings(page)
        mend_code(page, 'api' in path.relative_to(folder).parts)
    places = {page_address(path, folder, page): (path, set(identifiers(text_of(holder[key]) for holder, key in texts(page)))) for path, page in pages.items()}
    for path, page in pages.items():
        for holder, key in texts(page): holder[key] = mend_text(text_of(holder[key]), path, folder, places)
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__': mend(Path(sys.argv[1]).resolve(), Path(__file__).resolve().parent.parent/'nbs')
