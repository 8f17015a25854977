"""The page behind "Try it" of the site: python tools/try_page.py _docs/try [runs/demo]

Puts the model of the embedded data set into a page that runs it in the reader's browser. Without such a model, or without the packages
that write it, the page says how to make one, and the site is built all the same.
"""
import sys
from pathlib import Path

from chestnb.core.errors import UserError
from chestnb.core.files import write_text

ABSENT = Path(__file__).resolve().parent.parent/'nbs'/'try'/'index.html' # says how to make one


def main(to, run='runs/demo'):
    "Write the page, or one that says how to make it."
    try:
        from chestnb.using.browser import build_page
        print(build_page(run, to))
    except (UserError, ImportError) as error:
        print(f'No model for "Try it": {error}')
        write_text(Path(to)/'index.html', ABSENT.read_text(encoding='utf-8'))


if __name__ == '__main__': main(*sys.argv[1:])
